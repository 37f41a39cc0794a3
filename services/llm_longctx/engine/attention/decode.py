"""Decode attention: one step of several sequences at once, a ragged batch of problems over their pages.

Every (sequence, key/value head) is one problem over a view of its own entries, and a layer is one call of the kernel,
whatever the methods. Knows nothing about linear layers, sampling or scheduling.
"""

from collections.abc import Sequence
from typing import overload

import torch
from torch import Tensor

from services.llm_longctx.engine.attention.kv_update import apply_compact_copies, apply_retention
from services.llm_longctx.engine.attention.layer_inputs import LayerInputs
from services.llm_longctx.engine.attention.step_rows import RowRuns, StepRows
from services.llm_longctx.engine.kv_manager import PagedState
from services.llm_longctx.kernels import decode as attention
from services.llm_longctx.kernels import (
    decode_device_runs,
    decode_packed,
    decode_packed_device_runs,
    decode_runs,
    merge,
)
from services.llm_longctx.kernels.dispatch import choose
from services.llm_longctx.methods.core.hook_inputs import AttentionOutput, CacheView, DecodeView
from services.llm_longctx.methods.core.hook_results import Compact, DecodePlan, Pages, Ranges
from shared.lm.host_transfer import take_rows, to_device

_Gathered = tuple[Tensor, Tensor, Tensor | None]
"""Keys and values [n,d] and log-weights [n] that a row reads in the place of its run."""


class StepAttention:
    """`attend` for one step. Rows are problems: sequence b's key/value head g is row b·G + g."""

    def __init__(self, rows: StepRows, backend: str, inputs: LayerInputs) -> None:
        self.rows, self._states = rows, rows.states
        self._inputs = inputs
        self._backend = backend
        pool = rows.pool
        kind = pool.device.type
        self._reads_on_device = kind != "cpu" and choose("decode", backend, pool.keys.dtype, kind) == "triton"
        self._planning = [b for b, s in enumerate(rows.states) if s.policy.method.overrides("decode_plan")]
        self._calibrating = [b for b, s in enumerate(rows.states) if s.policy.heads.calibrated]

    @property
    def is_plain(self) -> bool:
        """Whether every head attends over all it holds, and no method looks on."""
        return not self._planning and not self._calibrating

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor, offset: int) -> Tensor:  # the seam has it
        """Mix values; see `shared.lm.attention.AttentionFn`. T is 1."""
        (B, _, H, d), G, pool = q.shape, k.shape[2], self.rows.pool
        new_k, new_v = k.reshape(B * G, d), v.reshape(B * G, d)
        slots = self.rows.slots_at(layer)
        pool.keys.index_copy_(0, slots, new_k)
        pool.values.index_copy_(0, slots, new_v)
        rows = q.reshape(B * G, H // G, d)
        gathered: dict[int, _Gathered] = {}
        plans = {b: self._plan(layer, b, rows, new_k, new_v, gathered) for b in self._planning}
        more = self.rows.more
        plain = [b for b in more if not isinstance(plans.get(b), DecodePlan) or plans[b].views == Pages()]
        out, lse = self._attend(layer, rows, gathered)
        for group in self.rows.groups(plain) if plain else ():
            if group.n[layer].any():  # else all heads that took part have been cut
                out, lse = self._merge(layer, group, rows, out, lse)
        out = out.to(q.dtype)
        for b, plan in plans.items():
            if plan.want_scores:
                self._update(layer, b, rows)
        for b in self._calibrating:
            if heads := self._states[b].policy.calibrated_heads(layer):
                out[b * G : (b + 1) * G] = self._calibrate(layer, b, rows, out, lse, heads)
        return out.view(B, 1, H, d)

    def _attend(self, layer: int, rows: Tensor, gathered: dict[int, _Gathered]) -> tuple[Tensor, Tensor]:
        """Every row over its run of entries, or over what was gathered for it."""
        own, pool = self.rows.own, self.rows.pool
        if not gathered:
            return self._read(layer, own, rows)
        start, n, weighted = own.start[layer], own.n[layer], own.weighted[layer]
        at = [slice(first, first + many) for first, many in zip(start.tolist(), n.tolist(), strict=True)]
        keys, values = [pool.keys[one] for one in at], [pool.values[one] for one in at]
        weights = [pool.log_weights[one] if w else None for one, w in zip(at, weighted, strict=True)]
        for row, (k, v, weight) in gathered.items():
            keys[row], values[row], weights[row] = k, v, weight
        return attention(rows, keys, values, log_weights=weights, backend=self._backend)

    def _merge(self, layer: int, group: RowRuns, rows: Tensor, out: Tensor, lse: Tensor) -> tuple[Tensor, Tensor]:
        """Merge what lies in shared or packed pages into the rows of sequences that have some."""
        if group.rows is None:
            return merge((out, lse), self._read(layer, group, rows))
        mine = to_device(group.rows, rows.device) if group.rows_sent is None else group.rows_sent
        more = self._read(layer, group, rows[mine])
        mixed, sums = merge((out[mine], lse[mine]), more)
        return out.index_copy(0, mine, mixed), lse.index_copy(0, mine, sums)

    def _read(self, layer: int, run: RowRuns, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Rows over runs of whole entries, or of packed ones."""
        pool, at = self.rows.pool, (run.start[layer], run.n[layer], run.weighted[layer])
        if not run.bits:
            stores = pool.keys, pool.values, pool.log_weights
            if self._reads_on_device:
                return decode_device_runs(rows, stores, run.on_device(layer, rows.device), backend=self._backend)
            return decode_runs(rows, stores, *at, backend=self._backend)
        store = pool.packed_stores()[run.bits]
        packed = store.layout, store.pages, store.log_weights
        if self._reads_on_device:
            return decode_packed_device_runs(rows, packed, run.on_device(layer, rows.device), backend=self._backend)
        return decode_packed(rows, packed, *at, backend=self._backend)

    # Sequences whose method chooses what a step reads.

    def _view(self, layer: int, b: int, rows: Tensor) -> DecodeView:
        s, cache = self._states[b], self._states[b].cache
        G = cache.cut.shape[1]
        return DecodeView(
            layer, rows[b * G : (b + 1) * G].flatten(0, 1), cache.length, s.prompt_length,
            tuple(bool(x) for x in s.policy.full[layer]), HeadViews(s, layer), tuple(cache.compact.n[layer].tolist()),
            s.policy.config, s.memos[layer], self._inputs.attention_input(layer, b),
            self._inputs.output_matrix(layer, b),
        )  # fmt: skip

    def _plan(
        self, layer: int, b: int, rows: Tensor, k: Tensor, v: Tensor, gathered: dict[int, _Gathered]
    ) -> DecodePlan:
        """Ask the method, and put its views in the place of the whole runs: other runs, or gathered entries."""
        s = self._states[b]
        if s.policy.layers[layer] is not s.policy.method:
            return DecodePlan()
        plan, cache, G = s.policy.method.decode_plan(self._view(layer, b, rows)), s.cache, s.cache.cut.shape[1]
        views, own = [plan.view(g) for g in range(G)], self.rows.own
        if compact := [g for g, view in enumerate(views) if isinstance(view, Compact)]:
            at = [b * G + g for g in compact]
            cache.append_compact(layer, compact, take_rows(k, at), take_rows(v, at))
        for g, view in enumerate(views):
            if isinstance(view, Compact):
                own.start[layer, b * G + g] = cache.compact.start[layer, g]
                own.n[layer, b * G + g] = cache.compact.n[layer, g]
                own.changed.add(layer)
            elif isinstance(view, Ranges):
                spans = [cache.span(layer, g, begin, end) for begin, end in view.spans]
                gathered[b * G + g] = torch.cat([one for one, _ in spans]), torch.cat([one for _, one in spans]), None
            elif plan.views != Pages() and b in self.rows.more:
                held = cache.entries(layer, g)
                gathered[b * G + g] = held.k, held.v, held.log_weight
        return plan

    def _update(self, layer: int, b: int, rows: Tensor) -> None:
        """Show the method its step's probabilities, and do what follows."""
        s, step = self._states[b], self._view(layer, b, rows)
        q = step.q.to(self.rows.pool.log_weights.dtype).reshape(len(step.heads), -1, step.q.shape[1])
        scores = []
        for mine, held in zip(q, step.heads, strict=True):
            logits = mine @ held.k.to(q.dtype).mT * q.shape[-1] ** -0.5
            scores.append((logits if held.log_weight is None else logits + held.log_weight).softmax(-1))
        outcome = s.policy.method.after_decode(step, scores)
        s.memos[layer] = outcome.memo
        s.full_steps += layer == 0
        named = {g: s.cache.entries(layer, g) for g in outcome.retain}
        apply_retention(s, layer, outcome, named, s.cache.length + 1)
        apply_compact_copies(s, layer, outcome)

    def _calibrate(self, layer: int, b: int, rows: Tensor, out: Tensor, lse: Tensor, heads: tuple[int, ...]) -> Tensor:
        s, G = self._states[b], self._states[b].cache.cut.shape[1]
        mine = slice(b * G, (b + 1) * G)
        view = AttentionOutput(
            layer, rows[mine].flatten(0, 1)[:, None], HeadViews(s, layer), out[mine].flatten(0, 1)[:, None],
            lse[mine].flatten(0, 1)[:, None], s.cache.length, heads, decoding=True, last=True, config=s.policy.config,
            memo=s.memos[layer],
        )  # fmt: skip
        changed, s.memos[layer] = s.policy.method.epilogue(view)
        return changed.view(out[mine].shape)


class HeadViews(Sequence[CacheView]):
    """Entries of each key/value head of a layer, gathered on access."""

    def __init__(self, s: PagedState, layer: int) -> None:
        self._s, self._layer = s, layer

    def __len__(self) -> int:
        return int(self._s.cache.cut.shape[1])

    @overload
    def __getitem__(self, head: int) -> CacheView: ...
    @overload
    def __getitem__(self, head: slice) -> list[CacheView]: ...
    def __getitem__(self, head: int | slice) -> CacheView | list[CacheView]:
        """One head's entries, or several heads'."""
        if isinstance(head, slice):
            return [self[g] for g in range(*head.indices(len(self)))]
        if not -len(self) <= head < len(self):
            raise IndexError(head)
        held = self._s.cache.entries(self._layer, head)
        return CacheView(held.k, held.v, held.positions, held.log_weight)
