"""A C++ decode step in pieces: between them others attend, and activations are read and edited; vectors go in with it.

Each piece is the same arithmetic as in the whole step. Knows phases and buffers; knows nothing about requests.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from services.llm_longctx.kernels.decode_step.low_rank import AdapterTable
from services.llm_longctx.kernels.decode_step.runs import EntryRuns
from services.llm_longctx.kernels.native import bindings
from shared.lm.attention import AttentionFn, Tap
from shared.lm.config import DecoderConfig

_START = -1
_RUN_WORDS = 17  # of `EntryRuns`
_PHASES = 8  # of a layer, as in decode_step.cpp
_ROTATE, _ATTEND, _OUTPUT, _GATE = 1, 2, 3, 5

_AFTER_ATTENTION = ("attn_out", "resid_mid")
_AFTER_MLP = ("mlp_out", "resid_post")
_HEADS = ("q_rot", "k_rot", "z")

ADDABLE_SITES = frozenset({"embed", "resid_pre", *_AFTER_ATTENTION, *_AFTER_MLP, "final"})
"""Sites where adding a vector is adding it to the residual stream."""


@dataclass(frozen=True, slots=True, eq=False)
class Addition:
    """A vector that is added to the residual stream of one row of a step.

    Attributes:
        row: Which sequence of the step.
        site: One of `ADDABLE_SITES`.
        layer: Its layer; -1 for sites that exist once.
        vector: The addend, [D] float32.
    """

    row: int
    site: str
    layer: int
    vector: Tensor

    def phase(self, layers: int) -> int:
        """The phase before which it is added: the first of a layer, its gate, or the logits."""
        if self.site == "final":
            return layers * _PHASES
        if self.site in _AFTER_ATTENTION:
            return self.layer * _PHASES + _GATE
        return max(self.layer + (self.site in _AFTER_MLP), 0) * _PHASES


class StepInPieces:
    """One step: how far it is, and the buffers between the pieces.

    Attributes:
        config: The decoder's sizes.
        logits: [B,V] float32, complete at the end.
    """

    def __init__(
        self,
        config: DecoderConfig,
        dtype: torch.dtype,
        handle: int,
        fed: tuple[np.ndarray, np.ndarray],
        runs: EntryRuns | None,
        additions: Sequence[Addition],
        adapters: Sequence[AdapterTable | None] = (),
    ) -> None:
        """Prepare; without `runs` the caller attends in every layer. Adapters are one per row, or none at all."""
        self.config, self._dtype, self._handle = config, dtype, handle
        added = sorted(
            ((a.phase(config.layers), a.row, a.vector.data_ptr()) for a in additions), key=lambda one: one[0]
        )
        table = np.array(added, np.int64)
        rows = np.array([0 if one is None else one.address for one in adapters], np.int64)
        low = [rows.ctypes.data if adapters else 0, max((one.rank for one in adapters if one), default=0)]
        self._kept = fed, runs, additions, table, adapters, rows  # what the words point at
        self._rows = len(fed[0])
        self.logits = torch.empty(self._rows, config.vocab)
        found = [0] * _RUN_WORDS if runs is None else runs.words()
        beside = [self.logits.data_ptr(), len(added), table.ctypes.data]
        self._words = [self._rows, *(at.ctypes.data for at in fed), *found, *beside, *low, 0, 0, 0, 0]
        self._at = _START
        self._buffers: list[Tensor] = []
        self._heads: tuple[Tensor, Tensor, Tensor] | None = None
        self._mixed: Tensor | None = None

    @property
    def x(self) -> Tensor:
        """The residual stream [B,1,D] float32, written in place."""
        return self._view_buffers()[0]

    @property
    def projections(self) -> list[Tensor]:
        """A layer's q [B,1,H,d], k and v [B,1,G,d] before rotation, float32, written in place."""
        H, G = self.config.heads, self.config.kv_heads
        heads = self._view_buffers()[1].view(self._rows, 1, H + 2 * G, self.config.head_dim)
        return list(torch.split(heads, [H, G, G], 2))

    def run(self) -> Tensor:
        """Run to the end: the logits."""
        self.run_to(self.config.layers * _PHASES + 1)
        return self.logits

    def run_to(self, end: int) -> None:
        """Run the phases before `end` that have not run."""
        if self._at < end:
            bindings.decode_step(self._dtype, self._handle, self._words, self._at, end)
            self._at = end

    def rotate(self, layer: int) -> tuple[Tensor, Tensor, Tensor]:
        """Run up to a layer's attention, which the caller does: rotated q [B,1,H,d] and k, plain v [B,1,G,d]."""
        if self._heads is None:
            c, B = self.config, self._rows
            q = torch.empty(B, 1, c.heads, c.head_dim, dtype=self._dtype)
            k, v = (torch.empty(B, 1, c.kv_heads, c.head_dim, dtype=self._dtype) for _ in range(2))
            self._heads = q, k, v
        if not self._words[-4]:
            self.run_to(layer * _PHASES)  # the layers before attend themselves
        self._words[-4:-1] = [one.data_ptr() for one in self._heads]
        self.run_to(layer * _PHASES + _ATTEND)
        return self._heads

    def mix(self, layer: int, mixed: Tensor) -> None:
        """Take a layer's mixed values [B,1,H,d], with which the step goes on."""
        self._mixed = mixed.to(self._dtype).contiguous()
        self._words[-1], self._at = self._mixed.data_ptr(), layer * _PHASES + _OUTPUT

    def let_attend(self) -> None:
        """The step attends itself again, after layers in which the caller did; those must have run to their end."""
        self._words[-4:] = [0] * 4

    def _view_buffers(self) -> list[Tensor]:
        if not self._buffers:
            self.run_to(0)
            c, B = self.config, self._rows
            shapes = [B, 1, c.width], [B, (c.heads + 2 * c.kv_heads) * c.head_dim]
            self._buffers = bindings.view_buffers(self._dtype, self._handle, *shapes)
        return self._buffers


def run_tapped(
    step: StepInPieces, attend: AttentionFn, tap: Tap, tapped: frozenset[tuple[str, int]], *, is_attending: bool
) -> None:
    """Run all layers with a tap at the sites `tapped`; `attend` attends where heads are tapped, or everywhere."""
    taps = _Taps(step, tap, tapped)
    step.run_to(0)
    taps.edit("embed", -1, step.x)
    for layer in range(step.config.layers):
        begin, has_heads = layer * _PHASES, is_attending or taps.wants(layer, *_HEADS)
        if taps.wants(layer, "resid_pre", "attn_out"):
            step.run_to(begin)
            taps.edit("resid_pre", layer, step.x)
        before = step.x.clone() if taps.wants(layer, "attn_out") else None
        if taps.wants(layer, "q", "k", "v"):
            step.run_to(begin + _ROTATE)
            for site, part in zip("qkv", step.projections, strict=True):
                taps.edit(site, layer, part)
        if has_heads:
            _attend_tapped(step, layer, attend, taps)
        taps.edit_added(layer, _AFTER_ATTENTION, begin + _GATE, before)
        before = None
        if taps.wants(layer, "mlp_out"):
            step.run_to(begin + _GATE)
            before = step.x.clone()
        taps.edit_added(layer, _AFTER_MLP, begin + _PHASES, before)
        if has_heads and not is_attending:
            step.run_to(begin + _PHASES)
            step.let_attend()
    step.run_to(step.config.layers * _PHASES)
    taps.edit("final", -1, step.x)


def _attend_tapped(step: StepInPieces, layer: int, attend: AttentionFn, taps: _Taps) -> None:
    q, k, v = step.rotate(layer)
    taps.edit("q_rot", layer, q)
    taps.edit("k_rot", layer, k)
    z = attend(layer, q, k, v, 0).clone()
    taps.edit("z", layer, z)
    step.mix(layer, z)


class _Taps:
    """The taps of one step: edits go into its buffers."""

    def __init__(self, step: StepInPieces, tap: Tap, tapped: frozenset[tuple[str, int]]) -> None:
        self._step, self._tap, self._tapped = step, tap, tapped

    def wants(self, layer: int, *sites: str) -> bool:
        """Whether a site of a layer is tapped."""
        return any((site, layer) in self._tapped for site in sites)

    def edit(self, site: str, layer: int, x: Tensor) -> None:
        """Show an activation, and write what it was changed to."""
        if (site, layer) in self._tapped and (changed := self._tap(site, layer, x)) is not x:
            x.copy_(changed)

    def edit_added(self, layer: int, sites: tuple[str, str], end: int, before: Tensor | None) -> None:
        """Show what a part of a layer that ends at a phase has added to the stream, then the stream."""
        if not self.wants(layer, *sites):
            return
        self._step.run_to(end)
        if before is not None:
            added = self._step.x - before
            self.edit(sites[0], layer, added)
            self._step.x.copy_(before + added)
        self.edit(sites[1], layer, self._step.x)
