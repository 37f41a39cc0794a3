"""KV cache: pages private to one (layer, key/value head), and what each sequence holds in them.

Knows entries, pages and lengths. Knows nothing about attention methods, kernels, requests or the decoder.
"""

from services.llm_longctx.kv_cache.page_pool import PagePool, PoolExhausted
from services.llm_longctx.kv_cache.sequence_cache import Entries, SequenceCache, SharedPrefix

__all__ = ["Entries", "PagePool", "PoolExhausted", "SequenceCache", "SharedPrefix"]
