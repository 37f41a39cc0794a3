"""Prefill attention: one chunk of one sequence's prompt, by its policy, into its cache.

Whole heads are written first and read from pages. Heads that are cut read what they hold and the chunk's own tensors,
and only what they keep is ever written: a streaming head holds no dense prompt. Knows nothing about scheduling.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from services.llm_longctx.engine.attention.kv_update import apply_compact_copies, apply_retention
from services.llm_longctx.engine.attention.layer_inputs import LayerInputs
from services.llm_longctx.engine.attention.prefill_kernels import Part, over_held, over_history, under_mask, window_mask
from services.llm_longctx.engine.kv_manager import PagedState
from services.llm_longctx.kernels import window_prefill
from services.llm_longctx.kv_cache import Entries
from services.llm_longctx.methods.core.hook_inputs import AttentionOutput, CacheView, Chunk, PostPrefillView
from services.llm_longctx.methods.core.hook_results import Blocks, Dense, PrefillPlan, TokenLists, WindowSink
from shared.lm.host_transfer import take_rows


class ChunkAttention:
    """`attend` for one chunk."""

    def __init__(
        self, state: PagedState, *, last: bool, boundaries: Sequence[int] | None, backend: str, inputs: LayerInputs
    ) -> None:
        self._s = state
        self._inputs = inputs
        self._last = last
        self._boundaries = None if boundaries is None else tuple(boundaries)
        self._backend = backend
        policy, method = state.policy, state.policy.method
        self._is_plain = bool(policy.full.all()) and not policy.heads.calibrated
        self._is_plain &= not (method.overrides("prefill_plan") or method.overrides("after_prefill"))

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor, offset: int) -> Tensor:
        """Mix values; see `shared.lm.attention.AttentionFn`. The batch is one sequence."""
        q, k, v = q[0].transpose(0, 1), k[0].transpose(0, 1), v[0].transpose(0, 1)
        policy, cache, method = self._s.policy, self._s.cache, self._s.policy.layers[layer]
        G = k.shape[0]
        if self._is_plain:
            cache.append(layer, range(G), k, v)
            out, _ = over_history(q, *cache.whole_heads(layer, range(G)), Dense(), self._backend)
            cache.end_chunk(layer)
            return out.transpose(0, 1)[None]
        # A head that will be cut at the end of the prompt is whole until then.
        whole = [g for g in range(G) if policy.full[layer, g] or (method.cut_at_end and self._is_entire(layer, g))]
        cut = [g for g in range(G) if g not in whole]
        held: dict[int, Entries] = {}
        if not cut:
            out, lse = self._attend_whole(layer, q, k, v, offset, whole)
        else:
            out, lse = torch.empty_like(q), q.new_empty(q.shape[:2], dtype=torch.promote_types(q.dtype, torch.float32))
            if whole:
                own = take_rows(q, _rows(whole, q.shape[0] // G)), take_rows(k, whole), take_rows(v, whole)
                _put_rows((out, lse), whole, self._attend_whole(layer, *own, offset, whole))
            at = torch.arange(offset, offset + k.shape[1], device=k.device)
            held = {g: cache.entries(layer, g).join(k[g], v[g], at) for g in cut}
            own = take_rows(q, _rows(cut, q.shape[0] // G)), take_rows(k, cut), take_rows(v, cut)
            _put_rows((out, lse), cut, self._attend_cut(layer, *own, offset, cut, held))
        if calibrated := policy.calibrated_heads(layer):
            out = self._calibrate(layer, q, out, lse, offset, calibrated)
        self._update(layer, q, offset, cut, held, k, v)
        return out.transpose(0, 1)[None]

    def _is_entire(self, layer: int, head: int) -> bool:
        return not self._s.cache.cut[layer, head] and self._s.policy.layers[layer] is self._s.policy.method

    def _attend_whole(self, layer: int, q: Tensor, k: Tensor, v: Tensor, offset: int, heads: Sequence[int]) -> Part:
        self._s.cache.append(layer, heads, k, v)
        keys, values = self._s.cache.whole_heads(layer, heads)
        plans = self._plans(layer, q, keys, values, offset, heads, evicting=False)
        if not isinstance(plans, list):
            self._record_density(plans, q.shape[1] * (2 * offset + q.shape[1] + 1) / 2)
            return over_history(q, keys, values, plans, self._backend)
        R = q.shape[0] // len(heads)
        parts = [
            over_history(q[i * R : (i + 1) * R], keys[i : i + 1], values[i : i + 1], plan, self._backend)
            for i, plan in enumerate(plans)
        ]
        return torch.cat([out for out, _ in parts]), torch.cat([lse for _, lse in parts])

    def _attend_cut(
        self, layer: int, q: Tensor, k: Tensor, v: Tensor, offset: int, heads: Sequence[int], held: dict[int, Entries]
    ) -> Part:
        plans = self._plans(layer, q, k, v, offset, heads, evicting=True)
        R, T, parts = q.shape[0] // len(heads), q.shape[1], []
        for i, head in enumerate(heads):
            plan, now, rows = plans[i] if isinstance(plans, list) else plans, held[head], q[i * R : (i + 1) * R]
            if isinstance(plan, WindowSink):
                parts.append(self._attend_window(rows, now, plan, offset))
            elif now.log_weight is None:
                parts.append(over_history(rows, now.k[None], now.v[None], Dense(), self._backend))
            else:
                n = len(now.positions) - T
                parts.append(over_held(rows, (now.k[:n], now.v[:n]), now.log_weight[:n], k[i], v[i]))
        return torch.cat([out for out, _ in parts]), torch.cat([lse for _, lse in parts])

    def _attend_window(self, q: Tensor, now: Entries, plan: WindowSink, offset: int) -> Part:
        """One head's first entries and its window. Entries without gaps behind the first can be told by their order."""
        first = int((now.positions < plan.sink).sum())
        rest = now.positions[first:]
        in_order = torch.equal(now.positions[:first], torch.arange(first, device=q.device)) and torch.equal(
            rest, torch.arange(len(rest), device=q.device) + rest[:1]
        )
        if in_order and now.log_weight is None:
            return window_prefill(q, now.k[None], now.v[None], first, plan.window, backend=self._backend)
        mask = window_mask(now.positions, offset, q.shape[1], plan.sink, plan.window)
        return under_mask(q, now.k[None], now.v[None], mask, now.log_weight)

    def _plans(
        self, layer: int, q: Tensor, k: Tensor, v: Tensor, offset: int, heads: Sequence[int], *, evicting: bool
    ) -> PrefillPlan | list[PrefillPlan]:
        s = self._s
        view = Chunk(
            layer, q, k, v, offset, self._last, tuple(heads), evicting, self._boundaries, s.policy.config,
            s.memos[layer],
        )  # fmt: skip
        plans = s.policy.layers[layer].prefill_plan(view)
        return list(plans) if isinstance(plans, Sequence) else plans

    def _record_density(self, plan: PrefillPlan, causal: float) -> None:
        """Remember how dense the reading was of so many causal pairs, for `usage`."""
        share = 1.0
        if isinstance(plan, Blocks):
            share = plan.csr.density() if plan.density is None else plan.density
        elif isinstance(plan, TokenLists):
            seen = sum(
                (row.end - row.begin) * (row.begin + row.end + 1) / 2
                if row.tokens is None
                else float((row.tokens <= torch.arange(row.begin, row.end, device=row.tokens.device)[:, None]).sum())
                for row in plan.rows
            )
            share = seen / causal
        self._s.densities.append((share, causal))

    def _calibrate(
        self, layer: int, q: Tensor, out: Tensor, lse: Tensor, offset: int, heads: tuple[int, ...]
    ) -> Tensor:
        s, G = self._s, self._s.policy.config.kv_heads
        held = [_view(s.cache.entries(layer, g)) for g in range(G)]
        view = AttentionOutput(
            layer, q, held, out, lse, offset, heads, decoding=False, last=self._last, config=s.policy.config,
            memo=s.memos[layer],
        )  # fmt: skip
        out, s.memos[layer] = s.policy.method.epilogue(view)
        return out

    def _update(
        self, layer: int, q: Tensor, offset: int, cut: Sequence[int], held: dict[int, Entries], k: Tensor, v: Tensor
    ) -> None:
        """Keep what the method keeps, and write it."""
        s, method = self._s, self._s.policy.layers[layer]
        ordered: set[int] = set()
        if method.overrides("after_prefill"):
            G = k.shape[0]
            heads = [held[g] if g in held else s.cache.entries(layer, g) for g in range(G)]
            full = tuple(bool(x) for x in s.policy.full[layer])
            seen = [_view(one) for one in heads]
            view = PostPrefillView(
                layer, q, offset, self._last, full, seen, s.policy.config, s.memos[layer], prompt=s.prompt_length,
                hidden=self._inputs.attention_input(layer), output=self._inputs.output_matrix(layer),
            )  # fmt: skip
            outcome = method.after_prefill(view)
            s.memos[layer] = outcome.memo
            ordered = apply_retention(s, layer, outcome, dict(enumerate(heads)), offset + q.shape[1])
            apply_compact_copies(s, layer, outcome)
        for g in cut:
            if g not in ordered:
                s.cache.append(layer, (g,), k[g : g + 1], v[g : g + 1])
        s.cache.end_chunk(layer)


def _rows(heads: Sequence[int], R: int) -> list[int]:
    """Query heads of key/value heads."""
    return [g * R + i for g in heads for i in range(R)]


def _put_rows(whole: Part, heads: Sequence[int], part: Part) -> None:
    """Write the rows of some key/value heads."""
    for to, found in zip(whole, part, strict=True):
        R = len(found) // len(heads)
        for i, g in enumerate(heads):
            to[g * R : (g + 1) * R] = found[i * R : (i + 1) * R]


def _view(held: Entries) -> CacheView:
    return CacheView(held.k, held.v, held.positions, held.log_weight)
