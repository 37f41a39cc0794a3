"""Page table of a batch: where the entries of each decode problem lie in a pool. Knows page numbers, not owners."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False, slots=True)
class PageTable:
    """Ragged page tables of R problems; every page but a problem's last is full.

    Attributes:
        row_ptr: [R + 1] int32, offsets into `pages`.
        pages: int32, numbers of pages in the order of their entries.
        lengths: [R] int32, entries.
    """

    row_ptr: Tensor
    pages: Tensor
    lengths: Tensor

    @classmethod
    def of(cls, tables: Sequence[Sequence[int]], lengths: Sequence[int]) -> PageTable:
        """From one list of page numbers per problem."""
        ends = [0]
        for table in tables:
            ends.append(ends[-1] + len(table))
        flat = [page for table in tables for page in table]
        return cls(*(torch.tensor(x, dtype=torch.int32) for x in (ends, flat, list(lengths))))

    def entries(self, pool: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Contiguous copies of each problem's keys and values [n,d] from a pool [pages,2,P,d]."""
        keys, values = [], []
        ends, lengths = self.row_ptr.tolist(), self.lengths.tolist()
        for begin, end, n in zip(ends[:-1], ends[1:], lengths, strict=True):
            held = pool[self.pages[begin:end].long()]
            keys.append(held[:, 0].flatten(0, 1)[:n])
            values.append(held[:, 1].flatten(0, 1)[:n])
        return keys, values
