"""Titans: fast weights, the neural memory, its layers, language models, and states as bytes."""

from fovea_memory.mixers.titans.memory import MemoryState, MemoryTrace, TitansMemory
from fovea_memory.mixers.titans.networks import TitansLM, TitansSession
from fovea_memory.mixers.titans.state import StateError, StateMismatch, pack_state, unpack_state

__all__ = [
    "MemoryState", "MemoryTrace", "StateError", "StateMismatch", "TitansLM", "TitansMemory", "TitansSession",
    "pack_state", "unpack_state",
]  # fmt: skip
