"""KV cache of one sequence in few bits: recent entries whole, older ones in packed pages, the first page whole again.

A head's order is `fixed` (the first page, where attention sinks lie, and a virtual entry), shared and packed pages,
`own` (the recent window). Entries that leave a sliding window leave the front of the packed pages. Copies for compact
reads stay whole. Knows nothing about who decides what is kept.
"""

from collections.abc import Sequence
from typing import Self

import numpy as np
import torch
from torch import Tensor

from services.llm_longctx.kernels.packed_pages import PAGE
from services.llm_longctx.kv_cache.allocator.packed_store import CacheBits
from services.llm_longctx.kv_cache.allocator.page_pool import PagePool
from services.llm_longctx.kv_cache.allocator.page_runs import PageRuns
from services.llm_longctx.kv_cache.allocator.page_store import PageStore
from services.llm_longctx.kv_cache.paged_cache.sequence_cache import Entries, PagedCache, ReadRun, SharedPrefix
from shared.lm.host_transfer import to_device

RECENT = 32
"""Entries of the recent window that are always whole; up to a page more wait until they fill one."""


class FewBitCache(PagedCache):
    """Keys and values of one sequence, most of them in few bits.

    Attributes:
        bits: The format of packed pages.
        store: Packed pages.
        fixed: Whole entries that never leave [L,G].
        base: Packed entries that never leave: the sinks of sliding heads, less those in `fixed`.
        packed: Packed entries, the oldest first.
        stale: Entries at the front of `packed` that have left [L,G].
        slide: Most entries beyond the sinks [L,G]; -1 where nothing leaves, or where whole entries form a ring.
        packing: Heads whose older entries are packed [L,G]; not those with a small ring.
    """

    def __init__(self, pool: PagePool, layers: int, kv_heads: int, bits: CacheBits) -> None:
        super().__init__(pool, layers, kv_heads)
        self.bits = bits
        self.store = pool.open_packed(bits)
        self.fixed = PageRuns(pool, layers, kv_heads)
        self.base = PageRuns(self.store, layers, kv_heads)
        self.packed = PageRuns(self.store, layers, kv_heads)
        self.stale = np.zeros((layers, kv_heads), np.int64)
        self.slide = np.full((layers, kv_heads), -1, np.int64)
        self.packing = np.ones((layers, kv_heads), bool)

    # Held entries.

    @property
    def shared_store(self) -> PageStore:
        return self.store

    def pages(self) -> np.ndarray:
        return np.concatenate([self.own.pages(), self.compact.pages(), self.fixed.pages()])

    def held_pages(self) -> dict[PageStore, np.ndarray]:
        shared = [part.pages(PAGE) for part in self.shared]
        return {self.pool: self.pages(), self.store: np.concatenate([self.packed.pages(), self.base.pages(), *shared])}

    def read_runs(self) -> list[ReadRun]:
        parts = [ReadRun(self.bits, part.start, np.where(part.start < 0, 0, part.n)) for part in self.shared]
        parts.append(ReadRun(self.bits, self.base.start, self.base.n.copy()))
        parts.append(ReadRun(self.bits, self.packed.start + self.stale, self.packed.n - self.stale))
        parts.append(ReadRun(0, self.fixed.start, self.fixed.n.copy()))
        return [part for part in parts if part.n.any()]

    def packed_extents(self, layer: int, head: int) -> list[tuple[int, int]]:
        """(first entry in the store, entries) of a head's packed parts, in order."""
        at = layer, head
        shared = [(int(p.start[at]), p.n) for p in self.shared if p.start[at] >= 0]
        stale = int(self.stale[at])
        own = int(self.packed.start[at]) + stale, int(self.packed.n[at]) - stale
        return [one for one in (*shared, (int(self.base.start[at]), int(self.base.n[at])), own) if one[1]]

    def entries(self, layer: int, head: int) -> Entries:
        pool, store, slots, fixed = self.pool, self.store, self._own_slots(layer, head), self._fixed_slots(layer, head)
        extents = self.packed_extents(layer, head)
        origin = torch.cat([self._count(0, 0), *(self._count(start, start + n) for start, n in extents)])
        widened = [self._widen(start, n) for start, n in extents]
        keys = torch.cat([pool.keys[fixed], *(k for k, _ in widened), pool.keys[slots]])
        values = torch.cat([pool.values[fixed], *(v for _, v in widened), pool.values[slots]])
        first, last = len(pool.positions[fixed]), len(pool.positions[slots])
        positions, weights = self._count(0, len(keys)), None
        if self.cut[layer, head]:
            positions = torch.cat([pool.positions[fixed], store.positions[origin], pool.positions[slots]])
        if self.weighted[layer, head]:
            weights = torch.cat([pool.log_weights[fixed], store.log_weights[origin], pool.log_weights[slots]])
        origin = torch.cat([origin.new_full((first,), -1), origin, origin.new_full((last,), -1)])
        return Entries(keys, values, positions, weights, origin)

    def whole_heads(self, layer: int, heads: Sequence[int]) -> tuple[Tensor, Tensor]:
        at = layer, heads[0]
        length = sum(n for _, n in self.packed_extents(*at)) + int(self.fixed.n[at] + self.own.n[at])
        held = self.pool.keys.new_empty(2, len(heads), length, self.pool.keys.shape[1])
        for i, head in enumerate(heads):
            fixed, own = self._fixed_slots(layer, head), self._own_slots(layer, head)
            begin, end = int(self.fixed.n[layer, head]), length - int(self.own.n[layer, head])
            extents = self.packed_extents(layer, head)
            if extents:
                pages = np.concatenate([start // PAGE + np.arange(n // PAGE) for start, n in extents])
                self.store.unpack_to(pages, held[0, i, begin:end], held[1, i, begin:end])
            for side, store in enumerate((self.pool.keys, self.pool.values)):
                held[side, i, :begin], held[side, i, end:] = store[fixed], store[own]
        return held[0], held[1]

    def span(self, layer: int, head: int, begin: int, end: int) -> tuple[Tensor, Tensor]:
        at, keys, values = 0, [self.pool.keys[:0]], [self.pool.values[:0]]
        fixed, own = (int(runs.start[layer, head]) for runs in (self.fixed, self.own))
        parts = [(0, fixed, int(self.fixed.n[layer, head]))]
        parts += [(self.bits, start, n) for start, n in self.packed_extents(layer, head)]
        parts.append((0, own, int(self.own.n[layer, head])))
        for bits, start, n in parts:
            first, last = start + max(begin - at, 0), start + min(end - at, n)
            if first < last and bits:
                k, v = self._widen(first, last - first)
                keys.append(k)
                values.append(v)
            elif first < last:
                keys.append(self.pool.keys[first:last])
                values.append(self.pool.values[first:last])
            at += n
        return torch.cat(keys), torch.cat(values)

    # Writing prompts.

    def reserve(self, entries: np.ndarray) -> None:
        self.own.reserve(entries.clip(max=RECENT + 3 * PAGE))
        self.packed.reserve((entries - RECENT).clip(min=0))

    def end_chunk(self, layer: int) -> None:
        self.pack_old(layer)

    def pack_old(self, layer: int | None = None) -> None:
        """Pack whole pages of entries older than the recent window, in one layer or in all.

        Raises PoolExhausted: there are no addresses left.
        """
        count = self._packable()
        if layer is not None:
            count[np.arange(len(count)) != layer] = 0
        heads = [(int(one[0]), int(one[1])) for one in np.argwhere(count)]
        if not heads:
            return
        for at in heads:
            if self._opening()[at]:
                self._move_first(at)
        starts = [int(self.own.start[at]) for at in heads]
        slots = np.concatenate([start + np.arange(count[at] * PAGE) for start, at in zip(starts, heads, strict=True)])
        which, pool, to = to_device(slots, self.pool.device), self.pool, []
        copied = Entries(pool.keys[which], pool.values[which], pool.positions[which], pool.log_weights[which])
        for at in heads:  # whole pages go back first: packed ones need less
            self.own.drop_front(*at, int(count[at]))
            begin = int(self.packed.n[at])
            self.packed.extend(at[0], (at[1],), int(count[at]) * PAGE)
            to.append((int(self.packed.start[at]) + begin) // PAGE + np.arange(count[at]))
        numbers = np.array([self._number(at) for at in heads])
        self._pack(copied, np.concatenate(to), np.repeat(numbers, [count[at] for at in heads]))

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
        """Hold exactly `entries` from now on; see `PagedCache.keep`.

        Packed pages that are kept whole stay as they are. Others are taken apart, and rounded anew with what lay beside
        them. Raises PoolExhausted: there is no room; ValueError: more entries are there than may slide.
        """
        at = layer, head
        held = entries.take(torch.argsort(entries.positions, stable=True))
        n, virtual = len(held.positions), int((held.positions < 0).sum())
        slides = slide is not None
        sinks = int((held.positions < sink).sum()) - virtual if slides else min(PAGE, n - virtual)
        missing = (max(sink - int(held.positions.max()) - 1, 0) if n > virtual else sink) if slides else 0
        packs = slide is None or (not missing and slide >= RECENT + PAGE)
        base = max(sinks + virtual - PAGE, 0) // PAGE * PAGE
        first, rest = virtual + sinks - base, n - virtual - sinks
        if slide is not None and packs and rest > slide:
            raise ValueError(f"{rest} entries are kept in a window of {slide}")
        order = self._count(0, n)
        fixed = held.take(torch.cat((order[virtual:first], order[:virtual])))
        kept, loose = self._intact(held, order[virtual + sinks :]) if not slides else ([], order[virtual + sinks :])
        old = max(len(loose) - RECENT, 0) // PAGE * PAGE if packs else 0
        stays = self.store.pages[to_device(kept, self.pool.device, torch.int64)], _positions_of(held, kept)
        based, older, recent = (held.take(x) for x in (order[first : first + base], loose[:old], loose[old:]))
        self._leave_shared(layer, head)
        for runs in (self.own, self.fixed, self.base, self.packed):
            runs.drop(*at)
        self.fixed.replace(*at, len(fixed.positions), len(fixed.positions))
        self._write(int(self.fixed.start[at]), fixed)
        ring = missing + slide + 1 if slide is not None and not packs else len(recent.positions) + 2 * PAGE
        self.own.replace(*at, len(recent.positions), ring)
        self._write(int(self.own.start[at]), recent)
        self.base.replace(*at, base, base)
        number = np.array(self._number(at))
        self._pack(based, int(self.base.start[at]) // PAGE + np.arange(base // PAGE), number)
        pages = len(kept) + old // PAGE
        self.packed.replace(*at, pages * PAGE, (pages + 2) * PAGE + spare)
        begin = int(self.packed.start[at]) // PAGE
        self._put_back(begin, *stays)
        self._pack(older, begin + len(kept) + np.arange(old // PAGE), number)
        self.cut[at], self.weighted[at], self.packing[at] = True, held.log_weight is not None, packs
        self.slide[at], self.stale[at] = slide if slide is not None and packs else -1, 0
        self.windows.set(layer, head, None if packs else missing, slide, len(recent.positions))
        if absorbed is None:
            self.virtual.end(at)
        else:
            self.virtual.begin(at, fixed.k[-1], fixed.v[-1], absorbed, slot=first - virtual, weighted=weighted)

    def copy_compact(self, layer: int, head: int, positions: Tensor, spare: int) -> None:
        """Copy the entries at `positions` [K] of a whole head into its compact run, widened, with room for more."""
        chosen = self.entries(layer, head).take(positions)
        self.compact.replace(layer, head, len(positions), len(positions) + spare)
        self._write(int(self.compact.start[layer, head]), chosen)

    # Decoding.

    @property
    def most_in_step(self) -> int:
        left = RECENT + PAGE + self._opening() - self.own.n + PAGE * self._packable()
        return max(int(left.min()), 1)

    def pages_needed(self, tokens: int = 1) -> int:
        if tokens == 1:
            return super().pages_needed()
        whole = np.where(self.cut, 0, 1)
        packed = -(-(self.own.n + tokens - RECENT).clip(min=0) // PAGE) * whole
        recent = (RECENT // PAGE + 3 - self.own.held / max(int(whole.sum()), 1)) * whole.sum()
        chunk = self.pool.pages_for(tokens) * int(whole.sum(1).max())
        return int(-(-int(packed.sum()) * self.store.page_bytes // self.pool.page_bytes) + max(recent, 0) + chunk)

    def begin_step(self, *, mark: bool = True) -> np.ndarray:
        self.pack_old()
        return super().begin_step(mark=mark)

    def end_step(self) -> None:
        self.length += 1
        leaving = (self.slide >= 0) & (self.packed.n - self.stale + self.own.n > self.slide)
        if self.windows.any:
            self.windows.evict_oldest(self.own.n)
        for at in self.virtual.heads():
            hole, start = int(self.windows.hole[at]), int(self.fixed.start[at])
            if hole >= 0:
                slot = int(self.own.start[at]) + hole
                self.virtual.absorb(at, self.pool, start, self.pool.keys[slot], self.pool.values[slot])
            elif leaving[at]:
                k, v = self._widen(int(self.packed.start[at] + self.stale[at]), 1)
                self.virtual.absorb(at, self.pool, start, k[0], v[0])
        self.stale += leaving
        for layer, head in np.argwhere(self.stale == PAGE).tolist():
            self.packed.drop_front(layer, head, 1)
            self.stale[layer, head] = 0

    # Sharing.

    def empty_twin(self) -> Self:
        return type(self)(self.pool, *self.cut.shape, self.bits)

    def count_full(self) -> int:
        whole = self.packed.n[~self.cut]
        return int(whole.min()) if whole.size else 0

    def share(self, begin: int, count: int) -> SharedPrefix:
        return SharedPrefix(np.where(self.cut, -1, self.packed.start + begin), count)

    def copy(self, other: PagedCache, taken: int) -> None:
        if not isinstance(other, FewBitCache):
            raise TypeError("a cache in few bits is copied from one in few bits")
        self.stale, self.slide, self.packing = other.stale.copy(), other.slide.copy(), other.packing.copy()
        skip, none = np.where(self.cut, 0, taken), np.zeros_like(self.stale)
        self.own.reserve(np.maximum(other.own.n + PAGE, self.windows.capacity()))
        runs = (self.own, self.compact, self.fixed, self.base), (other.own, other.compact, other.fixed, other.base)
        for mine, its in zip(*runs, strict=True):
            mine.copy(its, none)
        self.packed.copy(other.packed, skip)

    def close(self) -> None:
        super().close()
        for runs in (self.fixed, self.base, self.packed):
            runs.close()

    # How it is done.

    def _packable(self) -> np.ndarray:
        """Whole pages older than the recent window that are still to be packed [L,G]."""
        old = self.own.n - RECENT - self._opening()
        return np.where(self.packing, old // PAGE, 0).clip(min=0)

    def _opening(self) -> np.ndarray:
        """Entries that are yet to be moved to `fixed` [L,G]: the first page of whole heads."""
        return np.where((self.fixed.n == 0) & ~self.cut, PAGE, 0)

    def _own_slots(self, layer: int, head: int) -> slice | Tensor:
        start, n = int(self.own.start[layer, head]), int(self.own.n[layer, head])
        if (hole := int(self.windows.hole[layer, head])) < 0:
            return slice(start, start + n)
        return torch.cat((self._count(start, start + hole), self._count(start + hole + 1, start + n)))

    def _fixed_slots(self, layer: int, head: int) -> slice:
        start = int(self.fixed.start[layer, head])
        return slice(start, start + int(self.fixed.n[layer, head]))

    def _widen(self, start: int, n: int) -> tuple[Tensor, Tensor]:
        """Keys and values [n,d] of packed entries from `start` on."""
        first = start // PAGE
        k, v = self.store.unpack(np.arange(first, -(-(start + n) // PAGE)), self.pool.keys)
        return k[start - first * PAGE :][:n], v[start - first * PAGE :][:n]

    def _move_first(self, at: tuple[int, int]) -> None:
        """A head's first page, where attention sinks lie, stays whole."""
        self.fixed.replace(*at, PAGE, PAGE)
        start = int(self.own.start[at])
        self.pool.copy(slice(start, start + PAGE), int(self.fixed.start[at]), PAGE)
        self.own.drop_front(*at, 1)

    def _intact(self, held: Entries, which: Tensor) -> tuple[list[int], Tensor]:
        """Packed pages of which all entries are among `which`, and the others of `which`."""
        if held.origin is None:
            return [], which
        page = torch.where(held.origin >= 0, held.origin // PAGE, -1)[which]
        pages, counts = torch.unique(page, return_counts=True)
        whole = pages[(counts == PAGE) & (pages >= 0)]
        return whole.tolist(), which[~torch.isin(page, whole)]

    def _number(self, at: tuple[int, int]) -> int:
        """The number of a head in the model, which seeds its rotation."""
        return at[0] * self.cut.shape[1] + at[1]

    def _pack(self, held: Entries, pages: np.ndarray, heads: np.ndarray) -> None:
        """Round entries into committed pages of the store, of one head or of heads [m] by their numbers."""
        if not len(pages):
            return
        store = self.store
        slots = to_device((pages[:, None] * PAGE + np.arange(PAGE)).ravel(), self.pool.device)
        store.fill(held.k, held.v, np.arange(len(pages)) * PAGE, pages, np.broadcast_to(heads, pages.shape))
        store.positions[slots] = held.positions
        store.log_weights[slots] = 0 if held.log_weight is None else held.log_weight

    def _put_back(self, begin: int, pages: Tensor, positions: Tensor) -> None:
        """Write packed pages as they were; none of their entries is virtual."""
        end = begin + len(pages)
        self.store.pages[begin:end] = pages
        self.store.positions.view(-1, PAGE)[begin:end] = positions
        self.store.log_weights.view(-1, PAGE)[begin:end] = 0


def _positions_of(held: Entries, pages: Sequence[int]) -> Tensor:
    """Positions [m,16] of the entries of packed pages; a store knows those of cut heads only."""
    if held.origin is None or not pages:
        return held.positions.new_empty(0, PAGE)
    order, device = torch.argsort(held.origin), held.origin.device
    first = torch.searchsorted(held.origin[order], to_device(pages, device) * PAGE)
    return held.positions[order][first[:, None] + torch.arange(PAGE, device=device)]
