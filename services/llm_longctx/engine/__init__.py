"""Runs decoders for many requests at once: prefill in chunks, one decode batch a step. Knows token ids, not text."""

from services.llm_longctx.engine.engine import Engine
from services.llm_longctx.engine.request import Choice, FinishReason, Request, Sampling, Sink, Token

__all__ = ["Choice", "Engine", "FinishReason", "Request", "Sampling", "Sink", "Token"]
