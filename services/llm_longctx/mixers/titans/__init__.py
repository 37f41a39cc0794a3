"""Titans: fast weights, the neural memory, its layers, language models, and states as bytes."""

from services.llm_longctx.mixers.titans.memory import MemoryState, MemoryTrace, TitansMemory
from services.llm_longctx.mixers.titans.networks import TitansLM, TitansSession
from services.llm_longctx.mixers.titans.state import StateError, StateMismatch, pack_state, unpack_state

__all__ = [
    "MemoryState",
    "MemoryTrace",
    "StateError",
    "StateMismatch",
    "TitansLM",
    "TitansMemory",
    "TitansSession",
    "pack_state",
    "unpack_state",
]
