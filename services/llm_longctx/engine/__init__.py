"""Runs decoders for many requests at once: prefill in chunks, one decode batch a step. Knows token ids, not text."""

from services.llm_longctx.engine.backend import PagedBackend, SequenceBackend
from services.llm_longctx.engine.offline.completion import (
    Completion,
    CompletionUsage,
    Request,
    RequestOutput,
    TokenCollector,
)
from services.llm_longctx.engine.offline.engine import Engine
from services.llm_longctx.engine.requests.request import FinishReason, GenerationRequest, RequestHooks, RequestStats
from services.llm_longctx.engine.requests.sampling import Grammar, Sampling, ScoredToken
from services.llm_longctx.engine.scheduler import Scheduler

__all__ = [
    "Completion", "CompletionUsage", "Engine", "FinishReason", "GenerationRequest", "Grammar", "PagedBackend",
    "Request", "RequestHooks", "RequestOutput", "RequestStats", "Sampling", "Scheduler", "ScoredToken",
    "SequenceBackend", "TokenCollector",
]  # fmt: skip
