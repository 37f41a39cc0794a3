"""Fixed step: a decode step whose numbers lie in one buffer on the device, at addresses that never change.

Everything that decides on its launches is in its shape; what changes from step to step is in the buffer. Rows and runs
that a step lacks are empty: they write to a spare page and read nothing. Knows rows of steps; knows no model.
"""

from __future__ import annotations

from typing import Generic, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from services.llm_longctx.engine.attention.step_rows import StepRows
from services.llm_longctx.kernels import (
    DeviceRuns,
    RowSettings,
    SamplingRows,
    decode_device_runs,
    decode_packed_device_runs,
    merge,
)
from services.llm_longctx.kv_cache import PagePool
from shared.lm.host_transfer import overwrite

_LEAST_LONGEST = 256
"""Entries up to which all runs are one shape: fewer are one part of a kernel anyway."""


class StepShape(NamedTuple):
    """Facts that a step's launches depend on.

    Attributes:
        batch: Sequences, empty ones included.
        layers, heads: Of the keys and values.
        runs: For the own runs and each group: bits (0 for whole entries), and entries that none of them exceeds.
        weighted: Whether some log-weights may count.
        marked: Whether positions of new entries are written.
    """

    batch: int
    layers: int
    heads: int
    runs: tuple[tuple[int, int], ...]
    weighted: bool
    marked: bool

    @classmethod
    def of(cls, rows: StepRows, filled: int) -> StepShape:
        """The shape of a step that is filled up to `filled` sequences."""
        (L, R), runs = rows.slots.shape, [rows.own, *rows.groups()]
        weighted = any(bool(run.weighted.any()) for run in runs)
        longest = tuple((run.bits, _next_power(int(run.n.max(initial=0)))) for run in runs)
        return cls(filled, L, R // len(rows.tokens), longest, weighted, rows.is_marked)


class FixedStep:
    """The buffer of one shape, and the attention over it.

    Attributes:
        shape: Its shape.
        ids, positions: Tokens and their positions [B,1].
        settings: Settings of sampling.
    """

    def __init__(self, shape: StepShape, pool: PagePool, spare: int, backend: str) -> None:
        """Make a buffer.

        Args:
            shape: Its shape.
            pool: Where entries lie.
            spare: An entry of the pool that nobody reads: empty rows write to it.
            backend: Of the kernels.
        """
        self.shape, self._pool, self._backend = shape, pool, backend
        B, L, R = shape.batch, shape.layers, shape.batch * shape.heads
        fields = len(RowSettings._fields)
        self._words = np.zeros(2 * B + L * R + 3 * L * R * len(shape.runs) + fields * B, np.int64)
        self._held = torch.zeros(len(self._words), dtype=torch.int64, device=pool.device)
        self._spare = spare
        self._host = _cut(self._words, shape)
        sent = _cut(self._held, shape)
        self.ids, self.positions = sent.tokens[:, None], sent.positions[:, None]
        self.settings = SamplingRows(np.zeros((fields, B)), sent.settings.view(torch.float64))
        self._slots = sent.slots
        self._runs = [run.unbind() for run in sent.runs]

    def write(self, rows: StepRows) -> None:
        """Send a step's numbers to the buffer, in one copy."""
        host, B = self._host, len(rows.tokens)
        R = B * self.shape.heads
        self._words.fill(0)
        host.slots.fill(self._spare)
        host.tokens[:B], host.positions[:B], host.slots[:, :R] = rows.tokens, rows.positions, rows.slots
        for run, group in zip(host.runs, [rows.own, *rows.groups()], strict=True):
            at = slice(0, R) if group.rows is None else group.rows
            for field, values in zip(run, (group.start, group.n, group.weighted), strict=True):
                field[:, at] = values
        if rows.draws is not None:
            host.settings[:, :B] = rows.draws.words()
        overwrite(self._held, self._words)

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, offset: int) -> Tensor:  # the seam has it
        """Mix values; see `shared.lm.attention.AttentionFn`. T is 1."""
        (B, _, H, d), G, pool = q.shape, k.shape[2], self._pool
        pool.keys.index_copy_(0, self._slots[layer], k.reshape(B * G, d))
        pool.values.index_copy_(0, self._slots[layer], v.reshape(B * G, d))
        rows = q.reshape(B * G, H // G, d)
        parts = [self._read(layer, i, rows) for i in range(len(self._runs))]
        out, _ = merge(*parts, backend=self._backend)
        return out.to(q.dtype).view(B, 1, H, d)

    def mark(self) -> None:
        """Write positions of the new entries, where some sequence holds chosen ones."""
        if self.shape.marked:
            slots = self._slots.flatten()
            L, B, G = self.shape.layers, self.shape.batch, self.shape.heads
            self._pool.positions.index_copy_(0, slots, self.positions.expand(L, B, G).reshape(-1))
            self._pool.log_weights.index_fill_(0, slots, 0)

    def _read(self, layer: int, which: int, rows: Tensor) -> tuple[Tensor, Tensor]:
        pool, (start, n, weighted), (bits, longest) = self._pool, self._runs[which], self.shape.runs[which]
        runs = DeviceRuns(start[layer], n[layer], weighted[layer].bool(), longest, self.shape.weighted)
        if not bits:
            stores = pool.keys, pool.values, pool.log_weights
            return decode_device_runs(rows, stores, runs, backend=self._backend)
        store = pool.packed_stores()[bits]
        packed = store.layout, store.pages, store.log_weights
        return decode_packed_device_runs(rows, packed, runs, backend=self._backend)


Words = TypeVar("Words", np.ndarray, Tensor)


class _Words(NamedTuple, Generic[Words]):
    """The parts of a buffer: tokens and positions [B], slots [L,R], runs [3,L,R] each, settings [5,B]."""

    tokens: Words
    positions: Words
    slots: Words
    runs: list[Words]
    settings: Words


def _cut(words: Words, shape: StepShape) -> _Words[Words]:
    B, L, R = shape.batch, shape.layers, shape.batch * shape.heads
    at = 2 * B + L * R
    runs = [words[at + 3 * L * R * i :][: 3 * L * R].reshape(3, L, R) for i in range(len(shape.runs))]
    settings = words[at + 3 * L * R * len(runs) :].reshape(-1, B)
    return _Words(words[:B], words[B : 2 * B], words[2 * B : at].reshape(L, R), runs, settings)


def _next_power(n: int) -> int:
    return max(1 << max(n - 1, 0).bit_length(), _LEAST_LONGEST)
