"""Attention methods by name, one per file, found by scan; `core.attention_method` says what a method is."""

from services.llm_longctx.methods.compose import Composed, compose
from services.llm_longctx.methods.core.attention_method import AttentionMethod, Reference, Supports
from services.llm_longctx.methods.core.registry import method, methods

__all__ = ["AttentionMethod", "Composed", "Reference", "Supports", "compose", "method", "methods"]
