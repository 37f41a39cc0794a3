"""KV cache: pages private to one (layer, key/value head), and what each sequence holds in them.

Knows entries, pages and lengths. Knows nothing about attention methods, kernels, requests or the decoder.
"""

from services.llm_longctx.kv_cache.allocator.packed_store import CacheBits
from services.llm_longctx.kv_cache.allocator.page_pool import PagePool, PoolExhausted
from services.llm_longctx.kv_cache.allocator.page_store import PageStore
from services.llm_longctx.kv_cache.paged_cache.few_bit_cache import RECENT, FewBitCache
from services.llm_longctx.kv_cache.paged_cache.sequence_cache import (
    Entries,
    PagedCache,
    ReadRun,
    SharedPrefix,
    count_bytes,
)

__all__ = [
    "RECENT", "CacheBits", "Entries", "FewBitCache", "PagePool", "PageStore", "PagedCache", "PoolExhausted", "ReadRun",
    "SharedPrefix", "count_bytes",
]  # fmt: skip
