"""Page pool: entries in pages of P, in the decoder's type, and next to it stores of pages in few bits, in one budget.

Knows nothing about sequences, layers or heads.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from fovea.errors import InvalidOption
from services.llm_longctx.kernels.packed_pages import MOST_CHANNELS, PAGE
from services.llm_longctx.kv_cache.allocator.packed_store import CacheBits, PackedStore
from services.llm_longctx.kv_cache.allocator.page_store import ByteBudget, PageStore, PoolExhausted

__all__ = ["PagePool", "PoolExhausted"]


class PagePool(PageStore):
    """Keys and values of all sequences.

    Attributes:
        capacity: Most pages that may be held, where none are in few bits.
        keys, values: [entries,d]; entry e lies in page e // P.
        positions: Logical position of each entry, -1 for a virtual one; meaningful for heads that were cut.
        log_weights: Added to each entry's logit; meaningful for heads that have a virtual entry.
    """

    def __init__(
        self, capacity: int, page: int, head_dim: int, dtype: torch.dtype, device: torch.device | str = "cpu"
    ) -> None:
        page_bytes = page * 2 * head_dim * dtype.itemsize
        super().__init__(page, page_bytes, ByteBudget(capacity * page_bytes), device)
        self.capacity = capacity
        entries = self.addresses * page
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        self.keys = self.storage((entries, head_dim), dtype)
        self.values = self.storage((entries, head_dim), dtype)
        self.positions = self.storage((entries,), torch.int64)
        self.log_weights = self.storage((entries,), wide)
        self._packed: dict[int, PackedStore] = {}

    def open_packed(self, bits: CacheBits) -> PackedStore:
        """The store of pages of so many bits, made when it is asked for first.

        Raises InvalidOption: pages of this pool, or heads, are of another size than few bits need.
        """
        if bits not in self._packed:
            like, wide = self.keys, self.log_weights.dtype
            if self.page != PAGE:
                detail = f"A cache of {bits} bits needs pages of {PAGE} entries, and this engine's have {self.page}."
                raise InvalidOption(detail, field="kv_cache_dtype")
            if like.shape[1] > MOST_CHANNELS:
                detail = f"A cache of {bits} bits is for heads of {MOST_CHANNELS} channels at most."
                raise InvalidOption(detail, hint="Leave the cache in the model's own type.", field="kv_cache_dtype")
            self._packed[bits] = PackedStore(bits, like.shape[1], self.page, self.budget, like.device, wide)
        return self._packed[bits]

    def copy(self, source: slice | Tensor, target: int, count: int) -> None:
        for store in (self.keys, self.values, self.positions, self.log_weights):
            store[target : target + count] = store[source]

    def packed_stores(self) -> Mapping[int, PackedStore]:
        """The stores of few bits that were asked for, by bits."""
        return self._packed
