"""Rows of a decode step: where each (sequence, key/value head) writes its new entry and what it reads, for all layers.

Built once per step as arrays on the host; a device gets them, with tokens and positions, in one copy. Knows nothing
about attention itself, methods or the decoder.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from services.llm_longctx.engine.device.step_draws import StepDraws
from services.llm_longctx.engine.kv_manager import PagedState
from services.llm_longctx.kernels import DeviceRuns, EntryRuns
from services.llm_longctx.kernels.packed_pages import CACHE_FORMATS
from services.llm_longctx.kv_cache import PagePool, ReadRun
from shared.lm.host_transfer import DeviceBuffer, to_device
from shared.lm.lora import LoraAdapter


@dataclass(slots=True, eq=False)
class RowRuns:
    """One run of entries for each of some rows, in every layer.

    Attributes:
        rows: Which rows of the step [r]; None is all of them.
        bits: 0 for whole entries, else the format of their pages.
        start, n: First entry in the store and entries [L,r] int64.
        weighted: Whether log-weights count [L,r].
        changed: Layers whose arrays were changed since they were sent.
        rows_sent: The rows on a device, once they were sent.
    """

    rows: np.ndarray | None
    bits: int
    start: np.ndarray
    n: np.ndarray
    weighted: np.ndarray
    changed: set[int] = field(default_factory=set)
    rows_sent: Tensor | None = None
    _sent: tuple[Tensor, Tensor, Tensor] | None = None
    _longest: int = 0
    _any_weighted: bool = True

    def words(self) -> list[np.ndarray]:
        """Sent tensors, in order."""
        rows = [] if self.rows is None else [self.rows]
        return [*rows, self.start, self.n, self.weighted]

    def take(self, sent: Tensor) -> int:
        """Find itself at the front of what was sent; returns its length."""
        (L, r), size = self.start.shape, int(self.start.size)
        first = 0 if self.rows is None else r
        start, n, weighted = sent[first : first + 3 * size].view(3, L, r).unbind()
        self.rows_sent = None if self.rows is None else sent[:r]
        self._sent, self._longest = (start, n, weighted.bool()), int(self.n.max(initial=0))
        self._any_weighted = bool(self.weighted.any())
        return int(first + 3 * size)

    def on_device(self, layer: int, device: torch.device) -> DeviceRuns:
        """A layer's runs for a kernel that reads them on the device."""
        if self._sent is None or layer in self.changed:
            start, n, weighted = to_device(np.stack([self.start[layer], self.n[layer], self.weighted[layer]]), device)
            return DeviceRuns(start, n, weighted.bool(), int(self.n[layer].max(initial=0)))
        start, n, weighted = self._sent
        return DeviceRuns(start[layer], n[layer], weighted[layer], self._longest, self._any_weighted)


class StepRows:
    """The rows of a step; sequence b's key/value head g is row b·G + g.

    A state may come several times, for a token and its draft: each sees what those before it have written.

    Attributes:
        states, tokens, positions, adapters: Sequences, the token that each is fed, its position, and its adapter.
        draws: Sampling settings of each row of logits; None where nothing is drawn next to them.
        pool: Where entries lie.
        slots: Where the step's own entries go [L,R].
        own: The runs that the sequences write; its arrays may be changed layer by layer.
        more: Further runs to read, by sequence.
    """

    def __init__(self, states: Sequence[PagedState], tokens: Sequence[int], draws: StepDraws | None = None) -> None:
        self.states, self.tokens, self.draws = states, tokens, draws
        self.pool: PagePool = states[0].cache.pool
        self._is_host = self.pool.device.type == "cpu"
        self.adapters: list[LoraAdapter | None] = [s.adapter for s in states]
        self.positions = _list_positions(states)
        offsets, counts = [], []
        for s in states:
            offsets.append(s.cache.begin_step(mark=self._is_host) - s.cache.own.start)
            counts.append(s.cache.own.n.copy())
        starts = np.stack([s.cache.own.start for s in states], 1)  # a run that grew may lie elsewhere now
        L = starts.shape[0]
        self.slots = (starts + np.stack(offsets, 1)).reshape(L, -1)
        weighted = np.stack([s.cache.weighted for s in states], 1).reshape(L, -1)
        self.own = RowRuns(None, 0, starts.reshape(L, -1), np.stack(counts, 1).reshape(L, -1), weighted)
        self.more = {b: runs for b, s in enumerate(states) if (runs := s.cache.read_runs())}
        self._slots_sent: Tensor | None = None
        self._grouped: list[RowRuns] | None = None

    @property
    def is_marked(self) -> bool:
        """Whether positions of the new entries must be written: some sequence holds chosen ones."""
        return any(s.cache.cut.any() for s in self.states)

    def slots_at(self, layer: int) -> Tensor:
        """Where a layer's new entries go [R], where the pool lies."""
        if self._slots_sent is not None:
            return self._slots_sent[layer]
        return to_device(self.slots[layer], self.pool.device)

    def entry_runs(self) -> EntryRuns:
        """All of it, for a step in C++."""
        L, R = self.slots.shape
        depth = max((len(runs) for runs in self.more.values()), default=0)
        start, n = np.zeros((depth + 1, L, R), np.int64), np.zeros((depth + 1, L, R), np.int64)
        bits, weighted = np.zeros((depth + 1, R), np.uint8), np.zeros((depth + 1, L, R), bool)
        start[depth], n[depth], weighted[depth] = self.own.start, self.own.n, self.own.weighted
        for b, runs in self.more.items():
            rows = self._rows_of(b)
            for at, run in enumerate(runs):
                start[at, :, rows], n[at, :, rows], bits[at, rows] = run.start, run.n, run.bits
                weighted[at, :, rows] = self.own.weighted[:, rows]
        pool = self.pool
        packed = {few: (store.pages, store.log_weights) for few, store in pool.packed_stores().items()}
        return EntryRuns(
            pool.keys, pool.values, pool.log_weights, self.slots, start, n, weighted, bits=bits, packed=packed
        )

    def groups(self, which: Sequence[int] | None = None) -> list[RowRuns]:
        """Runs read besides the own ones by all sequences, or by some: runs of one kind of store together."""
        if which is not None and len(which) < len(self.more):
            return self._group(which)
        if self._grouped is None:
            self._grouped = self._group(list(self.more))
        return self._grouped

    def send(self, buffer: DeviceBuffer) -> tuple[Tensor, Tensor]:
        """Send everything to where the pool lies, in one copy; tokens and positions [B,1] there."""
        B, groups, draws = len(self.tokens), [self.own, *self.groups()], self.draws
        fed = np.array([self.tokens, self.positions], np.int64)
        words = [fed, self.slots, *(part for group in groups for part in group.words())]
        words += [] if draws is None else [draws.words()]
        sent = buffer.send(np.concatenate([part.ravel() for part in words], dtype=np.int64))
        size = self.slots.size
        self._slots_sent = sent[2 * B : 2 * B + size].view(self.slots.shape)
        at = 2 * B + size
        for group in groups:
            at += group.take(sent[at:])
        if draws is not None:
            draws.take(sent[at:])
        if not self._is_host:
            self._mark(sent[B : 2 * B])
        return sent[:B, None], sent[B : 2 * B, None]

    def _mark(self, positions: Tensor) -> None:
        """Write positions [B] of the new entries, where some sequence holds chosen ones."""
        if self._slots_sent is None or not self.is_marked:
            return
        (L, R), B = self.slots.shape, len(self.states)
        slots = self._slots_sent.flatten()
        self.pool.positions.index_copy_(0, slots, positions[:, None].expand(L, B, R // B).reshape(-1))
        self.pool.log_weights.index_fill_(0, slots, 0)

    def _rows_of(self, b: int) -> slice:
        G = self.slots.shape[1] // len(self.states)
        return slice(b * G, (b + 1) * G)

    def _group(self, which: Sequence[int]) -> list[RowRuns]:
        found: list[RowRuns] = []
        for at in range(max((len(self.more[b]) for b in which), default=0)):
            for bits in (0, *CACHE_FORMATS):
                runs = [(b, run) for b in which if len(self.more[b]) > at and (run := self.more[b][at]).bits == bits]
                if runs:
                    found.append(self._join(runs, bits))
        return found

    def _join(self, runs: Sequence[tuple[int, ReadRun]], bits: int) -> RowRuns:
        R = self.slots.shape[1]
        rows = np.concatenate([np.arange(R)[self._rows_of(b)] for b, _ in runs])
        n = np.concatenate([run.n for _, run in runs], 1)
        start = np.where(n > 0, np.concatenate([run.start for _, run in runs], 1), 0)
        is_all = len(rows) == R
        return RowRuns(None if is_all else rows, bits, start, n, self.own.weighted[:, rows])


def _list_positions(states: Sequence[PagedState]) -> list[int]:
    """The position of each token; those of one sequence follow each other."""
    positions = [s.cache.length for s in states]
    if len(set(states)) < len(states):
        fed: Counter[PagedState] = Counter()
        for i, s in enumerate(states):
            positions[i] += fed[s]
            fed[s] += 1
    return positions
