"""Page stores: pages counted by reference and given back to the system as soon as nobody holds them.

Runs of pages are contiguous in addresses, so that a head's entries are one view and never a gather. Addresses are
cheaper than memory: more are handed out than pages may be held, and a page costs nothing until it is committed. Several
stores share one budget of bytes. Knows nothing about what a page holds, nor about sequences, layers or heads.
"""

import contextlib
import mmap
import resource
import sys
import threading
import weakref
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from services.llm_longctx.kv_cache.allocator.range_allocator import RangeAllocator

OVERCOMMIT = 3
"""Addresses per page that may be held: a run is reserved at its longest, and moves leave gaps."""

_NORESERVE = 0x4000 if sys.platform == "linux" else 0
"""Linux's MAP_NORESERVE: addresses that nobody may ever touch need no promise of memory."""

_LIMIT_LOCK = threading.Lock()


class PoolExhausted(RuntimeError):
    """No more pages may be held, or no run of addresses is long enough."""


@dataclass(slots=True)
class ByteBudget:
    """Bytes that stores may hold together, and those that they hold."""

    capacity: int
    held: int = 0


class PageStore:
    """Pages of one kind.

    Attributes:
        page: P, entries per page.
        page_bytes: Bytes of one page, as budgets count them.
        held: Pages that are held.
        budget: Bytes, shared with other stores.
    """

    def __init__(self, page: int, page_bytes: int, budget: ByteBudget, device: torch.device | str) -> None:
        self.page, self.page_bytes, self.budget = page, page_bytes, budget
        self.device = torch.device(device)
        self.held = 0
        self.addresses = budget.capacity // page_bytes * (OVERCOMMIT if self.device.type == "cpu" else 1)
        self._addresses = RangeAllocator(self.addresses)
        self._refs = np.zeros(self.addresses, np.int32)
        self._maps: list[tuple[mmap.mmap, int]] = []

    def storage(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Zeros for all addresses, which cost nothing until they are touched."""
        if self.device.type != "cpu":
            return torch.zeros(shape, dtype=dtype, device=self.device)
        # Anonymous memory costs nothing until it is touched, and can be given back page by page.
        count = int(np.prod(shape))
        size = max(count * dtype.itemsize, 1)
        raised = _raise_data_limit(size)
        memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _NORESERVE)
        weakref.finalize(memory, _raise_data_limit, -raised).atexit = False
        self._maps.append((memory, count // max(self.addresses, 1) * dtype.itemsize))
        return torch.frombuffer(memory, dtype=dtype, count=count).view(shape)

    @property
    def free(self) -> int:
        """Pages of this kind that may still be held."""
        return (self.budget.capacity - self.budget.held) // self.page_bytes

    def pages_for(self, entries: int) -> int:
        """Pages that hold so many entries."""
        return -(-entries // self.page)

    def reserve(self, pages: int) -> int:
        """The first of so many consecutive page numbers; they hold nothing until committed.

        Raises PoolExhausted: there is no such run.
        """
        begin = self._addresses.take(pages)
        if begin is None:
            raise PoolExhausted(f"no run of {pages} pages is free")
        return begin

    def unreserve(self, begin: int, pages: int) -> None:
        """Give back reserved pages that were never committed."""
        if pages:
            self._addresses.give(begin, pages)

    def commit(self, pages: np.ndarray, replacing: int = 0) -> None:
        """Hold reserved pages [m] (int64), each once; `replacing` so many that are released right afterwards.

        Raises PoolExhausted: more than may be held.
        """
        if self.budget.held + (len(pages) - replacing) * self.page_bytes > self.budget.capacity:
            message = (
                f"{self.budget.held:,} of {self.budget.capacity:,} bytes are held, and {len(pages)} more pages of "
                f"{self.page_bytes:,} are wanted"
            )
            raise PoolExhausted(message)
        self._refs[pages] += 1
        self._count(len(pages))

    def share(self, pages: np.ndarray) -> None:
        """Hold pages [m] once more; nobody writes to them from now on."""
        self._refs[pages] += 1

    def release(self, pages: np.ndarray) -> None:
        """Let go of pages [m], each held by the caller; those that nobody holds go back.

        Raises ValueError: one of them is held by nobody.
        """
        if (self._refs[pages] < 1).any():
            raise ValueError("a page is released that nobody holds")
        self._refs[pages] -= 1
        gone = np.sort(pages[self._refs[pages] == 0])
        self._count(-len(gone))
        for run in np.split(gone, np.flatnonzero(np.diff(gone) != 1) + 1) if len(gone) else ():
            self._addresses.give(int(run[0]), len(run))
            self._forget(int(run[0]), len(run))

    def uncommit(self, pages: np.ndarray) -> None:
        """Let go of pages [m] that one alone holds; they stay reserved.

        Raises ValueError: others hold some of them, too.
        """
        if (self._refs[pages] != 1).any():
            raise ValueError("a page that others hold can't be taken back")
        self._refs[pages] = 0
        self._count(-len(pages))

    def references(self, pages: np.ndarray) -> np.ndarray:
        """How often each of the pages [m] is held."""
        return np.asarray(self._refs[pages])

    def copy(self, source: slice | Tensor, target: int, count: int) -> None:
        """Copy entries `source` to `target` … `target`+count-1, everything that belongs to them."""
        raise NotImplementedError

    def _count(self, pages: int) -> None:
        self.held += pages
        self.budget.held += pages * self.page_bytes

    def _forget(self, page: int, count: int) -> None:
        """Tell the system that the memory behind pages may be used for something else."""
        for memory, size in self._maps:
            # A page of the system may hold several of ours: the last of them to go takes it along.
            together = -(-mmap.PAGESIZE // size) if size else 1
            first, last = page, page + count
            for _ in range(together):
                if first == 0 or self._refs[first - 1]:
                    break
                first -= 1
            for _ in range(together):
                if last >= len(self._refs) or self._refs[last]:
                    break
                last += 1
            begin, end = -(-first * size // mmap.PAGESIZE), last * size // mmap.PAGESIZE
            if begin < end:
                memory.madvise(mmap.MADV_DONTNEED, begin * mmap.PAGESIZE, (end - begin) * mmap.PAGESIZE)


def _raise_data_limit(size: int) -> int:
    """Raise the kernel's limit of a process's memory, if there is one; return by how many bytes.

    The limit (`shared.serving.watchdog`) counts addresses, of which a store takes several times its budget.
    """
    with _LIMIT_LOCK:
        soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
        wanted = soft + size if hard == resource.RLIM_INFINITY else min(soft + size, hard)
        if not size or soft == resource.RLIM_INFINITY:
            return 0
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_DATA, (wanted, hard))
            return wanted - soft
    return 0
