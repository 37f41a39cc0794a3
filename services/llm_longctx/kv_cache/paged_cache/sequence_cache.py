"""KV cache of one sequence: a run of pages per (layer, key/value head), shared pages before it, compact copies next to.

A head is either whole (all entries in order of position, appended to) or cut (chosen entries with positions; in decode
perhaps a ring from which the oldest leaves). Knows nothing about who decides what is kept.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import torch
from torch import Tensor

from services.llm_longctx.kv_cache.allocator.page_pool import PagePool
from services.llm_longctx.kv_cache.allocator.page_runs import PageRuns
from services.llm_longctx.kv_cache.allocator.page_store import PageStore
from services.llm_longctx.kv_cache.paged_cache.sliding_window import SlidingWindows
from services.llm_longctx.kv_cache.paged_cache.virtual_entries import VirtualEntries
from shared.lm.host_transfer import to_device


@dataclass(frozen=True, slots=True, eq=False)
class Entries:
    """Entries of one head.

    Attributes:
        k, v: [n,d].
        positions: [n] int64, -1 for a virtual one.
        log_weight: [n] or None.
        origin: [n] int64, where in a store of few bits each comes from, -1 for whole ones; None where all are.
    """

    k: Tensor
    v: Tensor
    positions: Tensor
    log_weight: Tensor | None = None
    origin: Tensor | None = None

    def take(self, order: Tensor) -> Entries:
        """Some of them, in another order; a copy."""
        weights = None if self.log_weight is None else self.log_weight[order]
        origin = None if self.origin is None else self.origin[order]
        return Entries(self.k[order], self.v[order], self.positions[order], weights, origin)

    def weigh(self) -> Entries:
        """The same, with log-weights of 0 where they have none."""
        if self.log_weight is not None:
            return self
        wide = torch.float64 if self.k.dtype == torch.float64 else torch.float32
        return replace(self, log_weight=torch.zeros(len(self.k), dtype=wide, device=self.k.device))

    def join(self, k: Tensor, v: Tensor, positions: Tensor, log_weight: float = 0.0) -> Entries:
        """These, and whole ones behind them, of this log-weight where these have some."""
        weights, origin = self.log_weight, self.origin
        if weights is not None:
            weights = torch.cat((weights, weights.new_full((len(k),), log_weight)))
        if origin is not None:
            origin = torch.cat((origin, origin.new_full((len(k),), -1)))
        return Entries(
            torch.cat((self.k, k)), torch.cat((self.v, v)), torch.cat((self.positions, positions)), weights, origin
        )


@dataclass(frozen=True, slots=True, eq=False)
class SharedPrefix:
    """Whole pages before a sequence's own, read by several sequences and written by none.

    Attributes:
        start: First slot in the pool [L,G]; -1 for heads that take no part.
        n: Entries, a multiple of the page; the same for all heads that take part.
    """

    start: np.ndarray
    n: int

    def pages(self, page: int) -> np.ndarray:
        """Numbers of all its pages."""
        first = self.start[self.start >= 0] // page
        return np.asarray((first[:, None] + np.arange(self.n // page)).ravel())

    def continues(self, before: SharedPrefix) -> bool:
        """Whether it lies right behind another one, in every head."""
        return bool((np.where(before.start < 0, -1, before.start + before.n) == self.start).all())


@dataclass(frozen=True, slots=True, eq=False)
class ReadRun:
    """A run of entries that a decode step reads in every head, next to others.

    Attributes:
        bits: 0 for whole entries, else the format of their pages.
        start, n: First entry in the store and entries [L,G].
    """

    bits: int
    start: np.ndarray
    n: np.ndarray


class PagedCache:
    """Keys and values of one sequence.

    Attributes:
        length: Logical length: tokens read and produced.
        own: Runs that only this sequence writes.
        compact: Copies of chosen entries (Recycled).
        shared: Pages of others before `own`, in order.
        cut: [L,G], heads that hold chosen entries rather than all.
        weighted: [L,G], heads that have log-weights.
    """

    def __init__(self, pool: PagePool, layers: int, kv_heads: int) -> None:
        self.pool = pool
        self.length = 0
        self.own = PageRuns(pool, layers, kv_heads)
        self.compact = PageRuns(pool, layers, kv_heads)
        self.shared: list[SharedPrefix] = []
        self.cut = np.zeros((layers, kv_heads), bool)
        self.weighted = np.zeros((layers, kv_heads), bool)
        self.windows = SlidingWindows(layers, kv_heads)
        self.virtual = VirtualEntries()

    # Held entries.

    @property
    def nbytes(self) -> int:
        """Bytes of all pages held, shared ones included."""
        return count_bytes([self])

    @property
    def shared_store(self) -> PageStore:
        """Where shared pages lie."""
        return self.pool

    def held_pages(self) -> dict[PageStore, np.ndarray]:
        """Numbers of all pages held in each store."""
        return {self.pool: self.pages()}

    def read_runs(self) -> list[ReadRun]:
        """Runs that a step reads besides the own ones, which come last."""
        return [ReadRun(0, part.start, np.where(part.start < 0, 0, part.n)) for part in self.shared]

    def pages(self) -> np.ndarray:
        """Numbers of all pages held."""
        shared = [part.pages(self.pool.page) for part in self.shared]
        return np.concatenate([self.own.pages(), self.compact.pages(), *shared])

    def entries(self, layer: int, head: int) -> Entries:
        """All entries of one head, compact copies excluded; whole heads in order of position."""
        slots = self._slots(layer, head)
        keys, values = self.pool.keys[slots], self.pool.values[slots]
        positions = self.pool.positions[slots] if self.cut[layer, head] else self._count(0, len(keys))
        weights = self.pool.log_weights[slots] if self.weighted[layer, head] else None
        return Entries(keys, values, positions, weights)

    def extents(self, layer: int, head: int) -> list[tuple[int, int]]:
        """(first slot, entries) of a head's parts and its own run, in order; a stale slot is not left out."""
        shared = [(int(p.start[layer, head]), p.n) for p in self.shared if p.start[layer, head] >= 0]
        return [*shared, (int(self.own.start[layer, head]), int(self.own.n[layer, head]))]

    def whole_heads(self, layer: int, heads: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Keys and values of whole heads, [g,n,d] each: views where they lie side by side, copies otherwise."""
        if not self.shared and (views := self._together(layer, heads)) is not None:
            return views
        length = sum(n for _, n in self.extents(layer, heads[0]))
        held = self.pool.keys.new_empty(2, len(heads), length, self.pool.keys.shape[1])
        for i, head in enumerate(heads):
            at = 0
            for start, n in self.extents(layer, head):
                held[0, i, at : at + n] = self.pool.keys[start : start + n]
                held[1, i, at : at + n] = self.pool.values[start : start + n]
                at += n
        return held[0], held[1]

    def span(self, layer: int, head: int, begin: int, end: int) -> tuple[Tensor, Tensor]:
        """Keys and values of a whole head's positions `begin` … `end`-1 [m,d]; a view where one part holds them."""
        pieces, at = [], 0
        for start, n in self.extents(layer, head):
            first, last = max(begin, at), min(end, at + n)
            if first < last:
                pieces.append(slice(start + first - at, start + last - at))
            at += n
        if len(pieces) == 1:
            return self.pool.keys[pieces[0]], self.pool.values[pieces[0]]
        keys, values = ([store[:0], *(store[p] for p in pieces)] for store in (self.pool.keys, self.pool.values))
        return torch.cat(keys), torch.cat(values)

    # Writing prompts.

    def reserve(self, entries: np.ndarray) -> None:
        """Reserve addresses for what the heads' own runs will hold [L,G], so that they need not move."""
        self.own.reserve(entries)

    def append(self, layer: int, heads: Sequence[int], k: Tensor, v: Tensor) -> None:
        """Write new entries k, v [g,T,d] of some heads of a layer that do not slide, at positions `length` ….

        Raises PoolExhausted: there is no room.
        """
        T = k.shape[1]
        self.own.extend(layer, heads, T)
        views = self._together(layer, heads)
        if views is not None:
            views[0][:, -T:], views[1][:, -T:] = k, v
        for i, head in enumerate(heads):
            if views is not None and not self.cut[layer, head]:
                continue
            end = int(self.own.start[layer, head] + self.own.n[layer, head])
            if views is None:
                self.pool.keys[end - T : end], self.pool.values[end - T : end] = k[i], v[i]
            if self.cut[layer, head]:
                self.pool.positions[end - T : end] = self._count(self.length, self.length + T)
                self.pool.log_weights[end - T : end] = 0

    def _together(self, layer: int, heads: Sequence[int]) -> tuple[Tensor, Tensor] | None:
        """Own keys and values of several heads [g,n,d], where they are views; see `PageRuns.together`."""
        keys = self.own.together(self.pool.keys, layer, heads)
        values = self.own.together(self.pool.values, layer, heads)
        return None if keys is None or values is None else (keys, values)

    def keep(
        self,
        layer: int,
        head: int,
        entries: Entries,
        *,
        sink: int = 0,
        slide: int | None = None,
        spare: int = 0,
        absorbed: int | None = None,
        weighted: bool = True,
    ) -> None:
        """Hold exactly `entries` from now on; with `slide` as a ring from which the oldest leaves while decoding.

        Args:
            layer: Which layer.
            head: Which key/value head.
            entries: Kept entries; copied before their old place is released.
            sink: Entries with positions below it never leave.
            slide: At most so many entries beyond the sinks are held between steps.
            spare: Addresses for so many more entries (where nothing slides).
            absorbed: Number of entries behind the virtual one, which leaving entries join; None: they are forgotten.
            weighted: Whether the virtual entry's log-weight follows its count.

        Raises:
            PoolExhausted: There is no room.
        """
        fixed = (entries.positions < sink) | (entries.positions < 0)
        # Kept entries come first, a virtual one last of them; then the ring, whose first entry is the first to leave.
        held = entries.take(torch.argsort(entries.positions + ((entries.positions < 0) + ~fixed * 2 << 40)))
        n, virtual = len(fixed), int((entries.positions < 0).sum())
        # A short prompt does not fill the sinks: what comes next is one of them, and slides later.
        missing = max(sink - int(entries.positions.max()) - 1, 0) if n > virtual else sink
        base = int(fixed.sum()) + missing
        self._leave_shared(layer, head)
        self.own.replace(layer, head, n, n + spare if slide is None else base + slide + 1)
        self._write(int(self.own.start[layer, head]), held)
        self.cut[layer, head], self.weighted[layer, head] = True, held.log_weight is not None
        self.windows.set(layer, head, None if slide is None else base, slide, n)
        if absorbed is None:
            self.virtual.end((layer, head))
        else:
            at = base - missing - 1
            self.virtual.begin((layer, head), held.k[at], held.v[at], absorbed, slot=at, weighted=weighted)

    def copy_compact(self, layer: int, head: int, positions: Tensor, spare: int) -> None:
        """Copy the entries at `positions` [K] of a whole head into its compact run, with room for `spare` more.

        Raises PoolExhausted: there is no room.
        """
        slots = self._slots(layer, head)
        chosen = positions + slots.start if isinstance(slots, slice) else slots[positions]
        self.compact.replace(layer, head, len(positions), len(positions) + spare)
        self.pool.copy(chosen, int(self.compact.start[layer, head]), len(positions))

    def append_compact(self, layer: int, heads: Sequence[int], k: Tensor, v: Tensor) -> None:
        """Append one entry k, v [g,d] to the compact runs of some heads. Raises PoolExhausted: there is no room."""
        self.compact.extend(layer, heads, 1)
        at = to_device(self.compact.start[layer, heads] + self.compact.n[layer, heads] - 1, self.pool.device)
        self.pool.keys[at], self.pool.values[at] = k, v

    # Decoding.

    def end_chunk(self, layer: int) -> None:
        """A layer has attended to a chunk of the prompt."""

    @property
    def most_in_step(self) -> int:
        """Tokens that may be fed in one step, so that each sees what it would see alone."""
        return 1 << 30

    def pages_needed(self, tokens: int = 1) -> int:
        """Pages that so many more tokens commit: in a step, compact runs at their worst; in a chunk, in whole heads."""
        if tokens > 1:
            return self.own.pages_needed(np.where(self.cut, 0, tokens))
        return self.own.pages_to_advance(self.windows.hole < 0) + self.compact.pages_to_advance(self.compact.n > 0)

    def begin_step(self, *, mark: bool = True) -> np.ndarray:
        """Slots of the new token's entries [L,G]; each head has one entry more from now on.

        Args:
            mark: Write the positions of cut heads' entries; else the caller does, for many sequences at once.

        Raises:
            PoolExhausted: The pool is full; nothing has changed.
        """
        growing = self.windows.hole < 0
        self.own.advance(growing)
        slots = np.where(growing, self.own.start + self.own.n - 1, self.own.start + self.windows.hole)
        self.windows.fill_holes()
        if mark and self.cut.any():
            marked = to_device(slots[self.cut], self.pool.device)
            self.pool.positions[marked] = self.length
            self.pool.log_weights[marked] = 0
        return slots

    def end_step(self) -> None:
        """The token was attended to everywhere: the oldest entries leave full windows."""
        self.length += 1
        if not self.windows.any:
            return
        self.windows.evict_oldest(self.own.n)
        for at in self.virtual.heads():
            if self.windows.hole[at] >= 0:
                start = int(self.own.start[at])
                leaving = start + int(self.windows.hole[at])
                self.virtual.absorb(at, self.pool, start, self.pool.keys[leaving], self.pool.values[leaving])

    def truncate(self, count: int) -> None:
        """Forget the last `count` entries of all heads. Raises ValueError: a head is cut, or shares some of them."""
        if not count:
            return
        if self.cut.any() or (self.own.n < count).any():
            raise ValueError(f"the last {count} entries can't be forgotten: a head is cut, or shares them")
        self.own.retract(count)
        self.length -= count

    # Sharing.

    def empty_twin(self) -> Self:
        """Another cache of this kind, which holds nothing."""
        return type(self)(self.pool, *self.cut.shape)

    def fork(self) -> Self:
        """A twin that goes its own way: whole pages of whole heads are shared, everything else is copied.

        Raises PoolExhausted: there is no room for the copies.
        """
        twin = self.empty_twin()
        twin.length, twin.cut, twin.weighted = self.length, self.cut.copy(), self.weighted.copy()
        twin.windows, twin.virtual = self.windows.copy(), self.virtual.copy()
        taken = self.count_full()
        try:
            for part in (*self.shared, *([self.share(0, taken)] if taken else ())):
                twin.adopt(part)
            twin.copy(self, taken)
        except Exception:
            twin.close()
            raise
        return twin

    def copy(self, other: PagedCache, taken: int) -> None:
        """Own runs less the first `taken` entries of whole heads, and compact runs, of another sequence."""
        skip = np.where(self.cut, 0, taken)
        left = other.own.n - skip  # where nothing is, addresses can still be reserved for all that will come
        self.own.reserve(np.maximum((left + self.pool.page) * (left > 0), self.windows.capacity()))
        self.own.copy(other.own, skip)
        self.compact.copy(other.compact, np.zeros_like(skip))

    def prefix(self, count: int) -> Self:
        """The first `count` tokens (a multiple of the page) of a sequence without cut heads, as a sequence that shares.

        Nothing is copied.
        """
        shorter = self.empty_twin()
        for part in (*self.shared, *([self.share(0, filled)] if (filled := self.count_full()) else ())):
            if (n := min(part.n, count - shorter.length)) > 0:
                shorter.adopt(SharedPrefix(part.start, n))
                shorter.length += n
        return shorter

    def count_full(self) -> int:
        """Entries of the whole heads' own runs that fill pages, in all of them."""
        whole = self.own.n[~self.cut]
        return int(whole.min()) // self.pool.page * self.pool.page if whole.size else 0

    def share(self, begin: int, count: int) -> SharedPrefix:
        """Own entries `begin` … `begin`+`count`-1 of the whole heads, multiples of the page. It is not held yet."""
        return SharedPrefix(np.where(self.cut, -1, self.own.start + begin), count)

    def adopt(self, part: SharedPrefix) -> None:
        """Read shared pages behind those one has; they are held once more. Adjacent pages become one part."""
        self.shared_store.share(part.pages(self.pool.page))
        if self.shared and part.continues(self.shared[-1]):
            self.shared[-1] = SharedPrefix(self.shared[-1].start, self.shared[-1].n + part.n)
        else:
            self.shared.append(part)

    def close(self) -> None:
        """Give back everything."""
        self.own.close()
        self.compact.close()
        for part in self.shared:
            self.shared_store.release(part.pages(self.pool.page))
        self.shared = []

    # How it is done.

    def _slots(self, layer: int, head: int) -> slice | Tensor:
        """Where a head's entries lie, in order."""
        extents = [(start, n) for start, n in self.extents(layer, head) if n]
        hole = int(self.windows.hole[layer, head])
        if hole < 0 and len(extents) < 2:
            start, n = extents[0] if extents else (0, 0)
            return slice(start, start + n)
        if hole >= 0:  # the stale slot lies in the last part, the head's own run
            start, n = extents.pop()
            stale = int(self.own.start[layer, head]) + hole
            extents += [(start, stale - start), (stale + 1, start + n - stale - 1)]
        return torch.cat([self._count(start, start + n) for start, n in extents])

    def _count(self, begin: int, end: int) -> Tensor:
        """Numbers `begin` … `end`-1 where the pool lies."""
        return torch.arange(begin, end, device=self.pool.device)

    def _write(self, at: int, held: Entries) -> None:
        n = len(held.positions)
        self.pool.keys[at : at + n], self.pool.values[at : at + n] = held.k, held.v
        self.pool.positions[at : at + n] = held.positions
        self.pool.log_weights[at : at + n] = 0 if held.log_weight is None else held.log_weight

    def _leave_shared(self, layer: int, head: int) -> None:
        """A head that is cut shares nothing any more."""
        for i, part in enumerate(self.shared):
            if (start := int(part.start[layer, head])) >= 0:
                left = part.start.copy()
                left[layer, head] = -1
                self.shared[i] = SharedPrefix(left, part.n)
                self.shared_store.release(start // self.pool.page + np.arange(part.n // self.pool.page))


def count_bytes(caches: Iterable[PagedCache]) -> int:
    """Bytes of all pages that some caches hold; shared ones count once."""
    held: dict[PageStore, list[np.ndarray]] = {}
    for cache in caches:
        for store, pages in cache.held_pages().items():
            held.setdefault(store, []).append(pages)
    return sum(len(np.unique(np.concatenate(pages))) * store.page_bytes for store, pages in held.items())
