"""Page pool: entries in pages of P, counted by reference, given back to the system as soon as nobody holds them.

Runs of pages are contiguous in addresses, so that a head's entries are one view and never a gather. Addresses are
cheaper than memory: more are handed out than pages may be held, and a page costs nothing until it is committed. Knows
nothing about sequences, layers or heads.
"""

from __future__ import annotations

import mmap
import sys

import numpy as np
import torch
from torch import Tensor

from services.llm_longctx.kv_cache.range_allocator import RangeAllocator

__all__ = ["PagePool", "PoolExhausted"]

OVERCOMMIT = 3
"""Addresses per page that may be held: a run is reserved at its longest, and moves leave gaps."""

_NORESERVE = 0x4000 if sys.platform == "linux" else 0
"""Linux's MAP_NORESERVE: addresses that nobody may ever touch need no promise of memory."""


class PoolExhausted(RuntimeError):
    """No more pages may be held, or no run of addresses is long enough."""


class PagePool:
    """Keys and values of all sequences.

    Attributes:
        page: P, entries per page.
        capacity: Most pages that may be held.
        held: Pages that are held.
        keys, values: [entries,d]; entry e lies in page e // P.
        positions: Logical position of each entry, -1 for a virtual one; meaningful for heads that were cut.
        log_weights: Added to each entry's logit; meaningful for heads that have a virtual entry.
    """

    def __init__(
        self, capacity: int, page: int, head_dim: int, dtype: torch.dtype, device: torch.device | str = "cpu"
    ) -> None:
        self.page = page
        self.capacity = capacity
        self.held = 0
        addresses = capacity * (OVERCOMMIT if torch.device(device).type == "cpu" else 1)
        self._addresses = RangeAllocator(addresses)
        self._refs = np.zeros(addresses, np.int32)
        self._maps: list[tuple[mmap.mmap, int]] = []
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        self.keys = self._storage((addresses * page, head_dim), dtype, device)
        self.values = self._storage((addresses * page, head_dim), dtype, device)
        self.positions = self._storage((addresses * page,), torch.int64, device)
        self.log_weights = self._storage((addresses * page,), wide, device)

    def _storage(self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device | str) -> Tensor:
        if torch.device(device).type != "cpu":
            return torch.zeros(shape, dtype=dtype, device=device)
        # Anonymous memory costs nothing until it is touched, and can be given back page by page.
        count = int(np.prod(shape))
        memory = mmap.mmap(-1, max(count * dtype.itemsize, 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _NORESERVE)
        self._maps.append((memory, count // max(shape[0], 1) * dtype.itemsize * self.page))
        return torch.frombuffer(memory, dtype=dtype, count=count).view(shape)

    @property
    def entry_bytes(self) -> int:
        """Bytes of one entry, key and value."""
        return 2 * self.keys.shape[1] * self.keys.element_size()

    @property
    def page_bytes(self) -> int:
        """Bytes of one page."""
        return self.page * self.entry_bytes

    @property
    def free(self) -> int:
        """Pages that may still be held."""
        return self.capacity - self.held

    def pages_for(self, entries: int) -> int:
        """Pages that hold so many entries."""
        return -(-entries // self.page)

    def reserve(self, pages: int) -> int:
        """The first of so many consecutive page numbers; they hold nothing until committed.

        Raises:
            PoolExhausted: There is no such run.
        """
        begin = self._addresses.take(pages)
        if begin is None:
            message = f"no run of {pages} pages is free"
            raise PoolExhausted(message)
        return begin

    def unreserve(self, begin: int, pages: int) -> None:
        """Give back reserved pages that were never committed."""
        if pages:
            self._addresses.give(begin, pages)

    def commit(self, pages: np.ndarray, replacing: int = 0) -> None:
        """Hold reserved pages [m] (int64), each once; `replacing` so many that are released right afterwards.

        Raises:
            PoolExhausted: More than may be held.
        """
        if self.held + len(pages) - replacing > self.capacity:
            message = f"{self.held} of {self.capacity} pages are held, and {len(pages)} more are wanted"
            raise PoolExhausted(message)
        self._refs[pages] += 1
        self.held += len(pages)

    def share(self, pages: np.ndarray) -> None:
        """Hold pages [m] once more; nobody writes to them from now on."""
        self._refs[pages] += 1

    def release(self, pages: np.ndarray) -> None:
        """Let go of pages [m], each held by the caller; those that nobody holds go back.

        Raises:
            ValueError: One of them is held by nobody.
        """
        if (self._refs[pages] < 1).any():
            message = "a page is released that nobody holds"
            raise ValueError(message)
        self._refs[pages] -= 1
        gone = np.sort(pages[self._refs[pages] == 0])
        self.held -= len(gone)
        for run in np.split(gone, np.flatnonzero(np.diff(gone) != 1) + 1) if len(gone) else ():
            self._addresses.give(int(run[0]), len(run))
            self._forget(int(run[0]), len(run))

    def uncommit(self, pages: np.ndarray) -> None:
        """Let go of pages [m] that one alone holds; they stay reserved.

        Raises:
            ValueError: Others hold some of them, too.
        """
        if (self._refs[pages] != 1).any():
            message = "a page that others hold can't be taken back"
            raise ValueError(message)
        self._refs[pages] = 0
        self.held -= len(pages)

    def references(self, pages: np.ndarray) -> np.ndarray:
        """How often each of the pages [m] is held."""
        return np.asarray(self._refs[pages])

    def copy(self, source: slice | Tensor, target: int, count: int) -> None:
        """Copy entries `source` to `target` … `target`+count-1, everything that belongs to them."""
        for store in (self.keys, self.values, self.positions, self.log_weights):
            store[target : target + count] = store[source]

    def _forget(self, page: int, count: int) -> None:
        """Tell the system that the memory behind pages may be used for something else."""
        for memory, size in self._maps:
            # A page of the system may hold several of ours: the last of them to go takes it along.
            together = max(mmap.PAGESIZE // size, 1) if size else 1
            first, last = page, page + count
            while first % together and not self._refs[first - 1]:
                first -= 1
            while last % together and last < len(self._refs) and not self._refs[last]:
                last += 1
            begin, end = -(-first * size // mmap.PAGESIZE), last * size // mmap.PAGESIZE
            if begin < end:
                memory.madvise(mmap.MADV_DONTNEED, begin * mmap.PAGESIZE, (end - begin) * mmap.PAGESIZE)
