"""Runs decoders for many requests at once: prefill in chunks, one decode batch a step. Knows token ids, not text."""

from services.llm_longctx.engine.llm_engine import Engine
from services.llm_longctx.engine.order import Choice, Facts, FinishReason, Grammar, Order, Sampling, Sink, Token
from services.llm_longctx.engine.request import Completion, Request
from services.llm_longctx.engine.scheduler import Scheduler

__all__ = [
    "Choice",
    "Completion",
    "Engine",
    "Facts",
    "FinishReason",
    "Grammar",
    "Order",
    "Request",
    "Sampling",
    "Scheduler",
    "Sink",
    "Token",
]
