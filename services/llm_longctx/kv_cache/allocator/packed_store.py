"""Packed store: pages of 16 entries in few bits, with the positions and log-weights of their entries.

Knows nothing about sequences, layers or heads.
"""

import numpy as np
import torch
from torch import Tensor

from services.llm_longctx.kernels.packed_pages import CacheBits, PackedLayout, pack_pages, unpack_pages
from services.llm_longctx.kv_cache.allocator.page_store import ByteBudget, PageStore

__all__ = ["CacheBits", "PackedStore"]


class PackedStore(PageStore):
    """Pages of few bits.

    Attributes:
        layout: Format and sizes.
        pages: [pages,bytes] uint8.
        positions, log_weights: Of entries [pages·16], as in `PagePool`.
    """

    def __init__(
        self,
        bits: CacheBits,
        head_dim: int,
        page: int,
        budget: ByteBudget,
        device: torch.device | str,
        wide: torch.dtype,
    ) -> None:
        self.layout = PackedLayout(bits, head_dim)
        super().__init__(page, self.layout.nbytes, budget, device)
        self.pages = self.storage((self.addresses, self.layout.nbytes), torch.uint8)
        self.positions = self.storage((self.addresses * page,), torch.int64)
        self.log_weights = self.storage((self.addresses * page,), wide)

    def fill(self, keys: Tensor, values: Tensor, source: np.ndarray, page: np.ndarray, heads: np.ndarray) -> None:
        """Round entries source[i] … source[i]+15 of keys and values [entries,d] into pages page[i] of heads[i]."""
        pack_pages(self.layout, keys, values, source, self.pages, page, heads)

    def unpack(self, page: np.ndarray, like: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values [m·16,d] of pages [m], in the type of `like`."""
        keys, values = (like.new_empty(len(page) * self.page, self.layout.head_dim) for _ in range(2))
        self.unpack_to(page, keys, values)
        return keys, values

    def unpack_to(self, page: np.ndarray, keys: Tensor, values: Tensor) -> None:
        """Fill keys and values [m·16,d], whose rows are contiguous."""
        unpack_pages(self.layout, self.pages, page, keys, values)

    def copy(self, source: slice | Tensor, target: int, count: int) -> None:
        self.positions[target : target + count] = self.positions[source]
        self.log_weights[target : target + count] = self.log_weights[source]
        step = self.page
        pages = (
            slice(source.start // step, source.stop // step) if isinstance(source, slice) else source[::step] // step
        )
        self.pages[target // step : (target + count) // step] = self.pages[pages]
