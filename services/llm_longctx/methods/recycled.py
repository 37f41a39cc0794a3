"""Recycled Attention (2024): most decode steps read a compact copy of what the last full step attended to most."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from fovea.errors import InvalidOption
from services.llm_longctx.methods.core.attention_method import AttentionMethod, Reference
from services.llm_longctx.methods.core.hook_inputs import DecodeView, PostPrefillView
from services.llm_longctx.methods.core.hook_results import CacheUpdate, Compact, DecodePlan, Footprint, HeadRoles, Pages
from services.llm_longctx.methods.core.oracle import attention_weights, masked_attention
from services.llm_longctx.methods.core.sparsity_claims import build_method_claim
from shared.lm.config import DecoderConfig
from shared.lm.head_plan import HeadPlan

_FULL = DecodePlan(Pages(), want_scores=True)
_COMPACT = DecodePlan(Compact())
_EVICTING = DecodePlan(Compact(), want_scores=True)


class Recycled(AttentionMethod):
    """Every `stride`-th step reads everything and picks the `budget` entries that the steps until the next one read.

    Decoding reads less; nothing is freed, and the copies cost `budget` entries a head on top.
    """

    name: ClassVar[str] = "recycled"
    phases = frozenset({"decode"})
    actions = frozenset({"copy", "visibility"})
    granularity = "token"
    evidence = "last query"
    sparsity = build_method_claim("recycled", granularity="token-topk", mask="dynamic", decode="sparse")

    budget: int = Field(4096, ge=1, le=1 << 20, description="Entries in the compact copy (language modelling: 2048).")
    stride: int = Field(50, ge=1, description="Every so many steps one is full (language modelling: 10).")
    aggregate: Literal["max", "mean"] = Field("max", description="How the queries of a group vote.")
    evict: Literal["none", "lowest"] = Field(
        "none", description="`lowest`: the copy keeps its size between full steps."
    )
    similarity: float | None = Field(
        None,
        ge=-1,
        le=1,
        description="Instead of the stride: a step is full when its query's cosine with that of the "
        "last full step falls below this (0.8).",
    )
    check: int = Field(5, ge=1, description="With similarity: every so many steps are compared.")

    contract_knobs: ClassVar = (
        {"budget": 6, "stride": 3},
        {"budget": 8, "stride": 4, "evict": "lowest"},
        {"budget": 5, "similarity": 0.9, "check": 2},
    )

    def reference(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        q_new: Tensor | None = None,
        k_new: Tensor | None = None,
        v_new: Tensor | None = None,
        **inputs: Any,
    ) -> Reference:
        if q_new is None or k_new is None or v_new is None:
            raise ValueError("recycled needs the decode steps q_new, k_new and v_new")
        (H, T, _), (G, N) = q_new.shape, k.shape[:2]
        keys, values = torch.cat((k, k_new), 1), torch.cat((v, v_new), 1)
        mask, selected, full_steps = torch.zeros(H, T, N + T, dtype=torch.bool), [], []
        ranked = self._ranked(attention_weights(q[:, -1:], k, torch.ones(1, N, dtype=torch.bool))[:, 0], G)
        last, since = q[:, -1], N - 1
        for now in range(N, N + T):
            step = q_new[:, now - N]
            if full := self._is_full(now - N + 1, step, last):
                full_steps.append(now - N)
                seen = torch.arange(N + T) <= now
                mask[:, now - N] = seen
                ranked = self._ranked(attention_weights(step[:, None], keys, seen[None])[:, 0, : now + 1], G)
                last, since = step, now
            chosen = [[*self._kept(row, now - since).tolist(), *range(since + 1, now + 1)] for row in ranked]
            for g in range(0 if full else G):
                mask[g * (H // G) : (g + 1) * (H // G), now - N, chosen[g]] = True
            selected.append([sorted(one) for one in chosen])
        out = masked_attention(q_new, keys, values, mask)
        return Reference(out, mask, {"selected": selected, "full_steps": full_steps})

    def after_prefill(self, view: PostPrefillView) -> CacheUpdate:
        if not view.last:
            return CacheUpdate(memo=view.memo)
        H, scores = view.q.shape[0] // len(view.heads), []
        for g, head in enumerate(view.heads):
            wide = torch.promote_types(head.k.dtype, torch.float32)
            logits = view.q[g * H : (g + 1) * H, -1].to(wide) @ head.k.to(wide).T * view.q.shape[-1] ** -0.5
            scores.append((logits if head.log_weight is None else logits + head.log_weight).softmax(-1))
        return self._select(scores, view.q[:, -1], view.length - 1, [head.positions for head in view.heads])

    def decode_plan(self, step: DecodeView) -> DecodePlan:
        if not isinstance(step.memo, _Memo) or self._is_full(step.number, step.q, step.memo.query):
            return _FULL
        return _EVICTING if self.evict == "lowest" else _COMPACT

    def after_decode(self, step: DecodeView, scores: Sequence[Tensor]) -> CacheUpdate:
        memo = step.memo
        if not isinstance(memo, _Memo) or self._is_full(step.number, step.q, memo.query):
            return self._select(scores, step.q, step.position, [head.positions for head in step.heads])
        return CacheUpdate(compact=self._copies(memo, step.position), memo=memo)

    def estimate(self, config: DecoderConfig, heads: HeadRoles, prompt: int, new: int) -> Footprint:
        appended = 0 if self.evict == "lowest" else new if self.similarity is not None else min(self.stride - 1, new)
        # A copy is of what there was at the last full step; those that keep their size grow to it step by step.
        grown = new // self.stride * self.stride if self.similarity is None and self.evict == "none" else new
        row = (min(self.budget, prompt + grown) + appended,) * config.kv_heads
        whole = ((prompt + new,) * config.kv_heads,) * config.layers
        return Footprint(whole, (row,) * config.layers, is_bound=self.similarity is not None)

    def fit(self, entries: int, config: DecoderConfig, plan: HeadPlan | None, prompt: int, new: int) -> AttentionMethod:
        room = entries // (config.layers * config.kv_heads) - (prompt + new) - min(self.stride - 1, new)
        if room < 1:
            detail = f"recycled frees no memory: it holds {prompt + new:,} entries a head, and copies on top."
            raise InvalidOption(detail, hint="Ask for duo or razor, or leave the budget out.", field="longctx")
        return self.with_knobs(budget=min(self.budget, room))

    def _is_full(self, number: int, q: Tensor, last: Tensor) -> bool:
        if self.similarity is None:
            return number % self.stride == 0
        if number % self.check:
            return False
        return float(torch.cosine_similarity(q.double(), last.double(), dim=-1).mean()) < self.similarity

    def _ranked(self, scores: Tensor, kv_heads: int) -> Tensor:
        """Entries of each group in the order of its votes: probabilities [H,n] → indices [G,n]."""
        by_group = scores.view(kv_heads, -1, scores.shape[1])
        votes = by_group.amax(1) if self.aggregate == "max" else by_group.mean(1)
        return votes.argsort(dim=-1, descending=True, stable=True)

    def _kept(self, ranked: Tensor, appended: int) -> Tensor:
        """Entries that a copy holds besides `appended` newer ones, in order of their votes."""
        return ranked[: self.budget if self.evict == "none" else max(self.budget - appended, 0)]

    def _select(self, scores: Sequence[Tensor], query: Tensor, now: int, held: Sequence[Tensor]) -> CacheUpdate:
        """Copy the best entries of `held` positions; ties go to the lower one."""
        ranked = []
        for one, positions in zip(scores, held, strict=True):
            order = positions.argsort()
            ranked.append(positions[order][self._ranked(one[:, order], 1)[0]][: self.budget])
        memo = _Memo(query.clone(), tuple(ranked), now)
        return CacheUpdate(compact=self._copies(memo, now), memo=memo)

    def _copies(self, memo: _Memo, now: int) -> dict[int, Tensor]:
        """Positions per head after the step at `now`, with room for the next one where copies keep their size."""
        newer = torch.arange(memo.since + 1, now + 1, device=memo.query.device)
        return {
            g: torch.cat((self._kept(row, now + 1 - memo.since), newer)).sort().values
            for g, row in enumerate(memo.ranked)
        }


@dataclass(frozen=True, slots=True, eq=False)
class _Memo:
    """The last full step: its query [H,d], the best positions per head in order of votes, and its own position."""

    query: Tensor
    ranked: tuple[Tensor, ...]
    since: int
