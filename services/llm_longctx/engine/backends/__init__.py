"""Backends of the scheduler: a decoder over pages; plug-ins bring others."""

from services.llm_longctx.engine.backends.paged import PagedBackend
from services.llm_longctx.engine.backends.protocol import SequenceBackend

__all__ = ["PagedBackend", "SequenceBackend"]
