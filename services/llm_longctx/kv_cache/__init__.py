"""KV cache: pages private to one (layer, key/value head), and what each sequence holds in them.

Knows entries, pages and lengths. Knows nothing about attention methods, kernels, requests or the decoder.
"""

from services.llm_longctx.kv_cache.few_bit_cache import RECENT, FewBitCache
from services.llm_longctx.kv_cache.packed_store import CacheBits
from services.llm_longctx.kv_cache.page_pool import PagePool, PoolExhausted
from services.llm_longctx.kv_cache.page_store import PageStore
from services.llm_longctx.kv_cache.sequence_cache import Entries, ReadRun, SequenceCache, SharedPrefix

__all__ = [
    "RECENT",
    "CacheBits",
    "Entries",
    "FewBitCache",
    "PagePool",
    "PageStore",
    "PoolExhausted",
    "ReadRun",
    "SequenceCache",
    "SharedPrefix",
]
