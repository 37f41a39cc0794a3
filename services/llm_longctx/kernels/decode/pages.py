"""Page table of a batch: where the entries of each decode problem lie in a pool. Knows page numbers, not owners."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

__all__ = ["PageTable", "pair_stores"]


@dataclass(frozen=True, eq=False, slots=True)
class PageTable:
    """Ragged page tables of R problems; every page but a problem's last is full.

    Attributes:
        row_ptr: [R + 1] int32, offsets into `pages`.
        pages: int32, numbers of pages in the order of their entries.
        lengths: [R] int32, entries.
        longest: The largest of them, where the host knows it; so nobody need wait for a device that holds them.
    """

    row_ptr: Tensor
    pages: Tensor
    lengths: Tensor
    longest: int | None = None

    @classmethod
    def of(cls, tables: Sequence[Sequence[int]], lengths: Sequence[int]) -> PageTable:
        """From one list of page numbers per problem."""
        ends = [0]
        for table in tables:
            ends.append(ends[-1] + len(table))
        flat = [page for table in tables for page in table]
        return cls(*(torch.tensor(x, dtype=torch.int32, device="cpu") for x in (ends, flat, list(lengths))))

    @classmethod
    def of_runs(cls, start: Tensor, n: Tensor, longest: int) -> PageTable:
        """Of runs of consecutive entries in a pool of `pair_stores`: each is a page, named by its first entry."""
        return cls(_count(len(start), start.device), start, n, longest)

    def entries(self, pool: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Contiguous copies of each problem's keys and values [n,d] from a pool [pages,2,P,d]."""
        keys, values = [], []
        ends, lengths = self.row_ptr.tolist(), self.lengths.tolist()
        for begin, end, n in zip(ends[:-1], ends[1:], lengths, strict=True):
            held = pool[self.pages[begin:end].long()]
            keys.append(held[:, 0].flatten(0, 1)[:n])
            values.append(held[:, 1].flatten(0, 1)[:n])
        return keys, values


def pair_stores(keys: Tensor, values: Tensor) -> Tensor | None:
    """Keys and values [entries,d] of one allocation as a pool [1,2,entries,d] whose page e begins at entry e.

    Pages overlap: page 0 is everything, and a kernel that reads n entries of page e reads a run. None where they were
    allocated apart, or not row by row.
    """
    entries, d = keys.shape
    between = values.storage_offset() - keys.storage_offset()
    together = keys.untyped_storage().data_ptr() == values.untyped_storage().data_ptr() and between > 0
    if not together or keys.stride() != (d, 1) or values.stride() != (d, 1):
        return None
    return keys.as_strided((1, 2, entries, d), (d, between, d, 1))


@lru_cache(maxsize=64)
def _count(rows: int, device: torch.device) -> Tensor:
    """0 … rows, on a device."""
    return torch.arange(rows + 1, dtype=torch.int32, device=device)
