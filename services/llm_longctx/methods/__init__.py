"""Attention methods by name, one per file; found by scan. See `contract` for what a method is."""

from services.llm_longctx.methods.catalogue import method, methods
from services.llm_longctx.methods.compose import Composed, compose
from services.llm_longctx.methods.contract import AttentionMethod, Reference, Supports

__all__ = ["AttentionMethod", "Composed", "Reference", "Supports", "compose", "method", "methods"]
