"""One decode step of several sequences at once: linear layers see a batch, attention sees ragged problems.

Every (sequence, key/value head) is one problem over a view of its own entries, and a layer is one call of the kernel,
whatever the methods. Knows nothing about sampling or scheduling.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, overload

import numpy as np
import torch
from torch import Tensor

from services.llm_longctx.engine.kv_update import copied, retained
from services.llm_longctx.kernels import decode as attention
from services.llm_longctx.kernels import decode_runs, layer_ops, merge
from services.llm_longctx.kv_cache import PoolExhausted
from services.llm_longctx.methods.core.hook_inputs import AttentionOutput, CacheView, DecodeView
from services.llm_longctx.methods.core.hook_results import Compact, DecodePlan, Pages, Ranges
from shared.lm.decoder import Decoder

if TYPE_CHECKING:
    from services.llm_longctx.engine.open_sequence import OpenSequence

__all__ = ["decode", "held_bytes"]


def decode(model: Decoder, sequences: Sequence[OpenSequence], tokens: Sequence[int], backend: str) -> Tensor:
    """Feed one token to each sequence; its memory grows by one. Logits [B,V].

    Raises:
        PoolExhausted: The step needs more pages than are free; nothing has changed.
    """
    device, pool = model.output_matrix.device, sequences[0].memory.pool
    if (wanted := sum(s.memory.fresh() for s in sequences)) > pool.free:
        message = f"a step needs {wanted} pages, and {pool.free} are free"
        raise PoolExhausted(message)
    ids = torch.tensor([[token] for token in tokens], device=device)
    positions = torch.tensor([[s.memory.length] for s in sequences], device=device)
    ops = layer_ops(backend, pool.keys.dtype, device.type)
    logits: Tensor = model(ids, attend=StepAttention(sequences, backend), positions=positions, ops=ops)[:, 0]
    for s in sequences:
        s.memory.end_step()
    return logits


class StepAttention:
    """`attend` for one step. Rows are problems: sequence b's key/value head g is row b·G + g."""

    def __init__(self, sequences: Sequence[OpenSequence], backend: str) -> None:
        self._sequences = sequences
        self._backend = backend
        self._pool = sequences[0].memory.pool
        slots = np.stack([s.memory.begin_step() for s in sequences], 1)
        L = slots.shape[0]
        self._slots = torch.from_numpy(slots.reshape(L, -1))
        self._starts = np.stack([s.memory.own.start for s in sequences], 1).reshape(L, -1)
        self._counts = np.stack([s.memory.own.n for s in sequences], 1).reshape(L, -1)
        self._weighted = np.stack([s.memory.weighted for s in sequences], 1).reshape(L, -1)
        self._shared = [b for b, s in enumerate(sequences) if s.memory.parts]
        self._choosy = [b for b, s in enumerate(sequences) if s.policy.method.overrides("decode_plan")]
        self._calibrating = [b for b, s in enumerate(sequences) if s.policy.heads.calibrated]

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor, _offset: int) -> Tensor:
        """Mix values; see `shared.lm.attention.AttentionSeam`. T is 1."""
        (B, _, H, d), G = q.shape, k.shape[2]
        pool, slots = self._pool, self._slots[layer]
        new_k, new_v = k.reshape(B * G, d), v.reshape(B * G, d)
        pool.keys.index_copy_(0, slots, new_k)
        pool.values.index_copy_(0, slots, new_v)
        rows = q.reshape(B * G, H // G, d)
        gathered: dict[int, tuple[Tensor, Tensor]] = {}
        plans = {b: self._chosen(layer, b, rows, new_k, new_v, gathered) for b in self._choosy}
        plain = [b for b in self._shared if not isinstance(plans.get(b), DecodePlan) or plans[b].views == Pages()]
        out, lse = self._attended(layer, rows, gathered)
        if plain:
            out, lse = self._with_shared(layer, plain, rows, out, lse)
        out = out.to(q.dtype)
        for b, plan in plans.items():
            if plan.want_scores:
                self._followed(layer, b, rows)
        for b in self._calibrating:
            if heads := self._sequences[b].policy.calibrated(layer):
                out[b * G : (b + 1) * G] = self._calibrated(layer, b, rows, out, lse, heads)
        return out.view(B, 1, H, d)

    def _attended(self, layer: int, rows: Tensor, gathered: dict[int, tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        """Every row over its run of entries, or over what was gathered for it."""
        start, n, weighted, pool = self._starts[layer], self._counts[layer], self._weighted[layer], self._pool
        if not gathered:
            stores = pool.keys, pool.values, pool.log_weights
            return decode_runs(rows, stores, start, n, weighted, backend=self._backend)
        at = [slice(first, first + many) for first, many in zip(start.tolist(), n.tolist(), strict=True)]
        keys, values = [pool.keys[one] for one in at], [pool.values[one] for one in at]
        weights = [pool.log_weights[one] if w else None for one, w in zip(at, weighted, strict=True)]
        for row, (k, v) in gathered.items():
            keys[row], values[row] = k, v
        return attention(rows, keys, values, log_weights=weights, backend=self._backend)

    def _with_shared(
        self, layer: int, which: Sequence[int], rows: Tensor, out: Tensor, lse: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Merge what lies in shared pages into the rows of sequences that have some."""
        pool, G = self._pool, self._weighted.shape[1] // len(self._sequences)
        depth = max(len(self._sequences[b].memory.parts) for b in which)
        for at in range(depth):
            begins = [
                (b * G + g, int(part.start[layer, g]), part.n)
                for b in which
                for part in self._sequences[b].memory.parts[at : at + 1]
                for g in range(G)
                if part.start[layer, g] >= 0
            ]
            if not begins:  # all heads that took part have been cut
                continue
            index = torch.tensor([row for row, _, _ in begins])
            more = attention(
                rows[index],
                [pool.keys[begin : begin + n] for _, begin, n in begins],
                [pool.values[begin : begin + n] for _, begin, n in begins],
                backend=self._backend,
            )
            out, lse = out.clone(), lse.clone()
            out[index], lse[index] = merge((out[index], lse[index]), more)
        return out, lse

    # Sequences whose method chooses what a step reads.

    def _step(self, layer: int, b: int, rows: Tensor) -> DecodeView:
        s, memory = self._sequences[b], self._sequences[b].memory
        G = memory.cut.shape[1]
        return DecodeView(
            layer,
            rows[b * G : (b + 1) * G].flatten(0, 1),
            memory.length,
            s.prompt,
            tuple(bool(x) for x in s.policy.full[layer]),
            HeldHeads(s, layer),
            tuple(memory.compact.n[layer].tolist()),
            s.policy.config,
            s.memos[layer],
        )

    def _chosen(
        self, layer: int, b: int, rows: Tensor, k: Tensor, v: Tensor, gathered: dict[int, tuple[Tensor, Tensor]]
    ) -> DecodePlan:
        """Ask the method, and put its views in the place of the whole runs: other runs, or gathered entries."""
        s = self._sequences[b]
        if s.policy.layers[layer] is not s.policy.method:
            return DecodePlan()
        plan, memory, G = s.policy.method.decode_plan(self._step(layer, b, rows)), s.memory, s.memory.cut.shape[1]
        views = [plan.view(g) for g in range(G)]
        if compact := [g for g, view in enumerate(views) if isinstance(view, Compact)]:
            at = [b * G + g for g in compact]
            memory.append_compact(layer, compact, k[at], v[at])
        for g, view in enumerate(views):
            if isinstance(view, Compact):
                self._starts[layer, b * G + g] = memory.compact.start[layer, g]
                self._counts[layer, b * G + g] = memory.compact.n[layer, g]
            elif isinstance(view, Ranges):
                spans = [memory.span(layer, g, begin, end) for begin, end in view.spans]
                gathered[b * G + g] = torch.cat([one for one, _ in spans]), torch.cat([one for _, one in spans])
            elif plan.views != Pages() and memory.parts:
                held = memory.entries(layer, g)
                gathered[b * G + g] = held.k, held.v
        return plan

    def _followed(self, layer: int, b: int, rows: Tensor) -> None:
        """Show the method its step's probabilities, and do what follows."""
        s, step = self._sequences[b], self._step(layer, b, rows)
        G = len(step.heads)
        R, d = step.q.shape[0] // G, step.q.shape[1]
        scores = []
        for g in range(G):
            held = step.heads[g]
            logits = (step.q[g * R : (g + 1) * R] @ held.k.mT).to(self._pool.log_weights.dtype) * d**-0.5
            scores.append((logits if held.log_weight is None else logits + held.log_weight).softmax(-1))
        outcome = s.policy.method.after_decode(step, scores)
        s.memos[layer] = outcome.memo
        s.full_steps += layer == 0
        named = {g: s.memory.entries(layer, g) for g in outcome.retain}
        retained(s, layer, outcome, named, s.memory.length + 1)
        copied(s, layer, outcome)

    def _calibrated(self, layer: int, b: int, rows: Tensor, out: Tensor, lse: Tensor, heads: tuple[int, ...]) -> Tensor:
        s, G = self._sequences[b], self._sequences[b].memory.cut.shape[1]
        mine = slice(b * G, (b + 1) * G)
        view = AttentionOutput(
            layer,
            rows[mine].flatten(0, 1)[:, None],
            HeldHeads(s, layer),
            out[mine].flatten(0, 1)[:, None],
            lse[mine].flatten(0, 1)[:, None],
            s.memory.length,
            heads,
            decoding=True,
            last=True,
            config=s.policy.config,
            memo=s.memos[layer],
        )
        changed, s.memos[layer] = s.policy.method.epilogue(view)
        return changed.view(out[mine].shape)


class HeldHeads(Sequence[CacheView]):
    """What each key/value head of a layer holds, gathered when it is looked at."""

    def __init__(self, s: OpenSequence, layer: int) -> None:
        self._s, self._layer = s, layer

    def __len__(self) -> int:
        return int(self._s.memory.cut.shape[1])

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
        held = self._s.memory.entries(self._layer, head)
        return CacheView(held.k, held.v, held.positions, held.log_weight)


def held_bytes(sequences: Sequence[OpenSequence]) -> int:
    """Bytes of all pages that some of the sequences hold; shared ones count once."""
    if not sequences:
        return 0
    pages = np.unique(np.concatenate([s.memory.pages() for s in sequences]))
    return len(pages) * sequences[0].memory.pool.page_bytes
