"""Backends of the scheduler: a decoder over pages, and models whose requests have a session each."""

from services.llm_longctx.engine.backends.paged import PagedBackend
from services.llm_longctx.engine.backends.protocol import SequenceBackend
from services.llm_longctx.engine.backends.session import SessionBackend

__all__ = ["PagedBackend", "SequenceBackend", "SessionBackend"]
