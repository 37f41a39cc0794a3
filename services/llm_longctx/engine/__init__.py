"""Runs decoders for many requests at once: prefill in chunks, one decode batch a step. Knows token ids, not text."""

from services.llm_longctx.engine.backends import PagedBackend, SequenceBackend, SessionBackend
from services.llm_longctx.engine.completion import Completion, CompletionUsage, Request, RequestOutput, TokenCollector
from services.llm_longctx.engine.llm_engine import Engine
from services.llm_longctx.engine.request import (
    CandidateSpec,
    FinishReason,
    GenerationRequest,
    Grammar,
    RequestStats,
    Sampling,
    ScoredToken,
    TokenCallback,
)
from services.llm_longctx.engine.scheduler import Scheduler
from services.llm_longctx.engine.session import RequestSession, SessionSource

__all__ = [
    "CandidateSpec",
    "Completion",
    "CompletionUsage",
    "Engine",
    "FinishReason",
    "GenerationRequest",
    "Grammar",
    "PagedBackend",
    "Request",
    "RequestOutput",
    "RequestSession",
    "RequestStats",
    "Sampling",
    "Scheduler",
    "ScoredToken",
    "SequenceBackend",
    "SessionBackend",
    "SessionSource",
    "TokenCallback",
    "TokenCollector",
]
