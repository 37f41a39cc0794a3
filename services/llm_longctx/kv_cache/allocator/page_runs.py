"""Page runs: consecutive pages per (layer, key/value head), how many they are, where they lie, and how they grow.

All state is arrays over [L,G], so that a decode step moves every head of a sequence with a few operations. Knows
nothing about what entries mean.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from torch import Tensor

from services.llm_longctx.kv_cache.allocator.page_store import PageStore, PoolExhausted


class PageRuns:
    """Runs of one sequence.

    Attributes:
        start: First entry of each run in the pool [L,G].
        n: Entries in use [L,G]; the view of head (l, g) is start … start+n-1.
    """

    def __init__(self, pool: PageStore, layers: int, kv_heads: int) -> None:
        self.pool = pool
        self.start = np.zeros((layers, kv_heads), np.int64)
        self.n = np.zeros((layers, kv_heads), np.int64)
        self._room = np.zeros((layers, kv_heads), np.int64)  # pages reserved
        self._held = np.zeros((layers, kv_heads), np.int64)  # pages committed, from the first on

    def reserve(self, entries: np.ndarray) -> None:
        """Reserve addresses for so many entries per head [L,G], side by side, where a head has none yet.

        Raises PoolExhausted: there are no addresses left.
        """
        new = self._room == 0
        pages = np.where(new, -(-entries // self.pool.page), 0)
        before = np.cumsum(pages).reshape(pages.shape) - pages
        begin = self.pool.reserve(int(pages.sum()))
        self.start = np.where(new, (begin + before) * self.pool.page, self.start)
        self._room = np.where(new, pages, self._room)

    def pages(self, layer: int | None = None, head: int | None = None) -> np.ndarray:
        """Numbers of the committed pages: of one head, or of all."""
        if layer is not None:
            first = int(self.start[layer, head]) // self.pool.page
            return np.arange(first, first + self._held[layer, head])
        counts = self._held.ravel()
        firsts = np.repeat(self.start.ravel() // self.pool.page, counts)
        return np.asarray(firsts + np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts))

    @property
    def held(self) -> int:
        """Pages committed."""
        return int(self._held.sum())

    def pages_needed(self, growth: np.ndarray) -> int:
        """Pages that so many more entries per head [L,G] would commit."""
        need = -(-(self.n + growth) // self.pool.page)
        return int(np.where(growth > 0, need - self._held, 0).clip(min=0).sum())

    def pages_to_advance(self, growing: np.ndarray) -> int:
        """Pages that one more entry in the heads `growing` [L,G] (bool) would commit."""
        return int(np.count_nonzero(self._is_full(growing)))

    def advance(self, growing: np.ndarray) -> None:
        """Make room for one more entry in the heads `growing` [L,G] (bool) and count it.

        Raises PoolExhausted: the pool is full; then nothing was counted.
        """
        new = self._is_full(growing)
        if new.any():
            for layer, head in np.argwhere(new & (self._held == self._room)).tolist():
                self._move(layer, head, 2 * int(self._held[layer, head] + 1))
            self.pool.commit(self.start[new] // self.pool.page + self._held[new])
            self._held[new] += 1
        self.n = self.n + growing

    def _is_full(self, growing: np.ndarray) -> np.ndarray:
        """Which of the heads have no place for an entry in the pages that they hold."""
        return np.asarray(growing & (self.n == self._held * self.pool.page))

    def retract(self, count: int) -> None:
        """Take `count` entries off the end of every run; pages that hold none any more go back, addresses stay."""
        self.n = self.n - count
        need = -(-self.n // self.pool.page)
        for layer, head in np.argwhere(need < self._held).tolist():
            first = int(self.start[layer, head]) // self.pool.page
            kept, held = int(need[layer, head]), int(self._held[layer, head])
            self.pool.uncommit(np.arange(first + kept, first + held))
        self._held = np.minimum(self._held, need)

    def extend(self, layer: int, heads: Iterable[int], count: int) -> None:
        """Make room for `count` more entries in some heads of a layer and count them.

        Raises PoolExhausted: the pool is full; heads before the one that failed are extended.
        """
        for head in heads:
            n = int(self.n[layer, head]) + count
            need = self.pool.pages_for(n)
            if need > self._room[layer, head]:
                self._move(layer, head, max(need, 2 * int(self._room[layer, head])))
            self._commit(layer, head, need)
            self.n[layer, head] = n

    def replace(self, layer: int, head: int, entries: int, room: int) -> None:
        """Begin anew with `entries` uninitialised entries and addresses for `room`; the old pages go back.

        The old entries must have been copied elsewhere.
        """
        room = self.pool.pages_for(max(entries, room))
        self.drop(layer, head)
        self.start[layer, head] = self.pool.reserve(room) * self.pool.page
        self._room[layer, head] = room
        self._commit(layer, head, self.pool.pages_for(entries))
        self.n[layer, head] = entries

    def copy(self, other: PageRuns, first: np.ndarray) -> None:
        """Copy the runs of another sequence, less the `first` entries of each [L,G]. Raises PoolExhausted: No room."""
        for layer, head in np.argwhere(other.n > first).tolist():
            count, begin = int(other.n[layer, head] - first[layer, head]), int(first[layer, head])
            self.extend(layer, (head,), count)
            source = int(other.start[layer, head]) + begin
            self.pool.copy(slice(source, source + count), int(self.start[layer, head]), count)

    def drop_front(self, layer: int, head: int, pages: int) -> None:
        """Give back the first pages of one head, addresses and all; the run begins behind them."""
        begin = int(self.start[layer, head]) // self.pool.page
        self.pool.release(np.arange(begin, begin + pages))
        self.start[layer, head] += pages * self.pool.page
        self.n[layer, head] -= pages * self.pool.page
        self._held[layer, head] -= pages
        self._room[layer, head] -= pages

    def drop(self, layer: int, head: int) -> None:
        """Give back everything of one head."""
        begin, held = int(self.start[layer, head]) // self.pool.page, int(self._held[layer, head])
        self.pool.release(np.arange(begin, begin + held))
        self.pool.unreserve(begin + held, int(self._room[layer, head]) - held)
        self._room[layer, head] = self._held[layer, head] = self.n[layer, head] = 0

    def close(self) -> None:
        """Give back everything."""
        for layer, head in np.argwhere(self._room > 0).tolist():
            self.drop(layer, head)

    def view(self, store: Tensor, layer: int, head: int) -> Tensor:
        """A head's entries in one of the pool's stores [n, …]; a view."""
        begin = int(self.start[layer, head])
        return store[begin : begin + int(self.n[layer, head])]

    def together(self, store: Tensor, layer: int, heads: Sequence[int]) -> Tensor | None:
        """Entries of several heads [g,n,d] as one view, where they are equally long and equally spaced."""
        starts, lengths = self.start[layer].tolist(), self.n[layer].tolist()
        first, n, d = starts[heads[0]], lengths[heads[0]], store.shape[1]
        gap = starts[heads[1]] - first if len(heads) > 1 else 0
        if gap < 0 or any(lengths[head] != n or starts[head] != first + i * gap for i, head in enumerate(heads)):
            return None
        begin = store.storage_offset() + first * d
        return store.as_strided((len(heads), n, d), (gap * d, d, 1), begin)

    def _commit(self, layer: int, head: int, pages: int) -> None:
        held = int(self._held[layer, head])
        if pages > held:
            begin = int(self.start[layer, head]) // self.pool.page
            self.pool.commit(np.arange(begin + held, begin + pages))
            self._held[layer, head] = pages

    def _move(self, layer: int, head: int, room: int) -> None:
        """To a longer run, entries and all; where there is no room nothing changes."""
        old, n, page = int(self.start[layer, head]), int(self.n[layer, head]), self.pool.page
        pages = self.pages(layer, head)
        first = self.pool.reserve(room)
        try:
            private = int((self.pool.references(pages) == 1).sum())
            self.pool.commit(np.arange(first, first + len(pages)), replacing=private)
        except PoolExhausted:
            self.pool.unreserve(first, room)
            raise
        self.pool.copy(slice(old, old + n), first * page, n)
        self.pool.release(pages)
        self.pool.unreserve(old // page + len(pages), int(self._room[layer, head]) - len(pages))
        self.start[layer, head], self._room[layer, head] = first * page, room
