"""Deconstructed attention: seven mixers and their language models."""

from services.llm_longctx.mixers.deconstructed.mixers import Recurrence, attention_map, cache_bytes, layout, mix
from services.llm_longctx.mixers.deconstructed.networks import DeconstructedLM, DeconstructedSession

__all__ = [
    "DeconstructedLM",
    "DeconstructedSession",
    "Recurrence",
    "attention_map",
    "cache_bytes",
    "layout",
    "mix",
]
