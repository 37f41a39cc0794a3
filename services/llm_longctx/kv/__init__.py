"""Memory of keys and values: pages private to one (layer, key/value head), and what each sequence holds in them.

Knows entries, pages and lengths. Knows nothing about attention methods, kernels, requests or the decoder.
"""

from services.llm_longctx.kv.memory import Entries, Memory, Part
from services.llm_longctx.kv.pool import PagePool, PoolExhausted

__all__ = ["Entries", "Memory", "PagePool", "Part", "PoolExhausted"]
