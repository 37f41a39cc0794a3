"""Deconstructed attention: seven mixers and their language models."""

from fovea_memory.mixers.deconstructed.mixers import Recurrence, attention_map, cache_bytes, layout, mix
from fovea_memory.mixers.deconstructed.networks import DeconstructedLM, DeconstructedSession

__all__ = [
    "DeconstructedLM", "DeconstructedSession", "Recurrence", "attention_map", "cache_bytes", "layout", "mix",
]  # fmt: skip
