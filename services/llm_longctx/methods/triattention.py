"""TriAttention (2026): a head's queries lie near a centre before rotation, and a series of cosines scores keys."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch
from pydantic import Field, PrivateAttr, model_validator
from torch import Tensor

from services.llm_longctx.methods.core.attention_method import AttentionMethod
from services.llm_longctx.methods.core.eviction.method import EvictionMethod
from services.llm_longctx.methods.core.head_roles import entries_by_role
from services.llm_longctx.methods.core.hook_inputs import DecodeView, ReadTokens, ScoringView
from services.llm_longctx.methods.core.hook_results import DecodePlan, Footprint, HeadRoles
from shared.lm.config import DecoderConfig
from shared.lm.head_plan import HeadPlan
from shared.lm.host_transfer import take_rows, to_device
from shared.lm.rope import rotate, rotation

OFFSETS = tuple(1 << i for i in range(17))
"""Distances ahead of the newest token over which scores are means."""

_NEWEST = 1e30
"""Score of the newest entries: above all others, and still within the budget."""


class TriAttention(EvictionMethod):
    """Evicts while decoding, by the centres of each head's queries before rotation; needs no recent queries.

    An entry is worth the mean logit that the centre will give it over distances 1, 2, 4, … 65,536, and what the spread
    around the centre can add. Centres come from a head plan (`fovea heads calibrate NAME --kind centres`); without one,
    from the prompt's own queries. The paper's beta is `every`. A memory budget takes the prompt's protection away.
    """

    name: ClassVar[str] = "triattention"
    evidence = "query centres"
    optional_knobs: ClassVar = frozenset(
        {"safeguard", "safeguard_rule", "beta", "critical", "first_stage", "critical_epsilon", "allocation"}
    )
    contract_knobs: ClassVar[Sequence[Mapping[str, Any]]] = (
        {"ratio": 0.4, "budget": None, "every": None, "protect_prompt": False, "recent": 2},
        {"budget": 2, "every": 2, "recent": 1, "mode": "union"},
        {"budget": 13, "every": 3, "recent": 3, "mode": "per_layer_head", "prefill": "none", "protect_prompt": False},
    )

    budget: int | None = Field(2048, ge=1, le=1 << 20, description="Entries kept per head; wins over ratio.")
    every: int | None = Field(128, ge=1, description="While decoding: cut again after so many steps.")
    recent: int = Field(128, ge=1, le=1 << 16, description="Newest entries, which stay as far as the budget goes.")
    protect_prompt: bool = Field(True, description="Keep the whole prompt, besides the budget.")
    mode: Literal["union", "per_head", "per_layer_head"] = Field(
        "per_head",
        description="One set for all heads of a layer, one per key/value head, or those with a shared budget.",
    )

    _centres: np.ndarray | None = PrivateAttr(None)

    @model_validator(mode="before")
    @classmethod
    def _read_paper_names(cls, given: Any) -> Any:
        if not isinstance(given, Mapping):
            return given
        knobs = dict(given)
        if knobs.get("mode") == "per_layer_head" and knobs.get("allocation", "head") == "head":
            knobs["allocation"] = "layer"
        if "beta" in knobs and "every" not in knobs and knobs.get("allocation") != "pyramid":
            knobs["every"] = knobs["beta"]
        return knobs

    def bind(self, plan: HeadPlan | None) -> Self:
        if plan is None or plan.centres is None:
            return self
        bound = self.model_copy()
        bound._centres = plan.centres.tables  # noqa: SLF001  # its own copy
        return bound

    def summarize(self, summary: object, tokens: ReadTokens) -> object:
        if tokens.is_decoding:
            return summary
        before = summary if isinstance(summary, _Prompt) else None
        added = _Prompt(tokens.offset + tokens.q.shape[1], tokens.q.shape[1], _sum_queries(tokens))
        if before is None or self._centres is not None:
            return added
        return replace(added, count=before.count + added.count, sums=before.sums.add(added.sums))

    def score(self, view: ScoringView) -> Tensor:
        (G, _, d), R = view.k.shape, len(view.q) // len(view.k)
        centres = self._find_centres(view, [g * R + i for g in view.kv_heads for i in range(R)])
        if view.theta is None:
            turn = torch.ones(d // 2, dtype=torch.complex64, device=view.k.device)
        else:
            ahead = torch.tensor(OFFSETS, dtype=torch.float64, device=view.k.device) + view.tokens
            angles = view.theta.double()[:, None] * ahead
            turn = torch.polar(torch.ones_like(angles), angles).mean(1).to(torch.complex64)
        mean = torch.complex(centres.real, centres.imag) * turn
        rows = torch.cat((mean.real, mean.imag), -1).view(G, R, d).to(view.k.dtype)
        spread = (centres.size - mean_size(centres)).view(G, R, d // 2).to(view.k.dtype)
        lengths = view.k.reshape(*view.k.shape[:2], 2, d // 2).norm(dim=-2)
        logits = rows @ view.k.mT + spread @ lengths.mT
        standard = (logits - logits.mean(-1, keepdim=True)) / logits.std(-1, keepdim=True, correction=0).clamp(min=1e-9)
        best: Tensor = standard.amax(1)
        if self.mode == "union":
            best = best.amax(0).expand(G, -1)
        best = best.masked_fill(view.positions >= view.tokens - self.recent, _NEWEST)
        if self.protect_prompt and isinstance(view.summary, _Prompt):
            best = best.masked_fill(view.positions < view.summary.length, torch.inf)
        return best

    def keep_entries(
        self,
        scores: Sequence[Tensor],
        positions: Sequence[Tensor],
        count: int,
        norms: Sequence[Tensor] | None = None,
        tokens: int | None = None,
    ) -> list[Tensor]:
        exempt = max(int(row.isposinf().sum()) for row in scores)
        return super().keep_entries(scores, positions, count + exempt, norms, tokens)

    def decode_plan(self, step: DecodeView) -> DecodePlan:
        return DecodePlan(want_scores=self.every is not None and step.number % self.every == 0)

    def estimate(self, config: DecoderConfig, heads: HeadRoles, prompt: int, new: int) -> Footprint:
        if not self.protect_prompt:
            return super().estimate(config, heads, prompt, new)
        most = max(self.counts(prompt + new, config.layers)) + (self.every or new)
        return Footprint(entries_by_role(heads, config, prompt + new, prompt + min(new, most)), is_bound=True)

    def fit(self, entries: int, config: DecoderConfig, plan: HeadPlan | None, prompt: int, new: int) -> AttentionMethod:
        if sum(map(sum, self.estimate(config, self.head_plan(config, plan), prompt, new).entries)) <= entries:
            return self
        return EvictionMethod.fit(self.with_knobs(protect_prompt=False), entries, config, plan, prompt, new)

    def _find_centres(self, view: ScoringView, heads: Sequence[int]) -> _Centres:
        """Queries of a view's query heads [H',f]: calibrated ones, else the means of the prompt's queries."""
        if self._centres is not None:
            return _Centres(*(to_device(x[view.layer][heads], view.k.device) for x in self._centres))
        if isinstance(view.summary, _Prompt):
            mean = (x / view.summary.count for x in view.summary.sums.parts)
            return _Centres(*(take_rows(x, heads) for x in mean))
        own = ReadTokens(view.layer, view.q, view.tokens - view.q.shape[1], view.theta)
        return _Centres(*(x / view.q.shape[1] for x in _sum_queries(own).parts))


@dataclass(frozen=True, slots=True, eq=False)
class _Centres:
    """Mean queries before rotation as complex numbers per rotary pair, and the pairs' mean lengths [H,f]."""

    real: Tensor
    imag: Tensor
    size: Tensor

    @property
    def parts(self) -> tuple[Tensor, Tensor, Tensor]:
        """All three."""
        return self.real, self.imag, self.size

    def add(self, other: _Centres) -> _Centres:
        """Sums of both."""
        return _Centres(*(a + b for a, b in zip(self.parts, other.parts, strict=True)))


@dataclass(frozen=True, slots=True, eq=False)
class _Prompt:
    """Length of the prompt so far, and sums over `count` queries of it."""

    length: int
    count: int
    sums: _Centres


def mean_size(centres: _Centres) -> Tensor:
    """Lengths of the centres per pair."""
    return torch.hypot(centres.real, centres.imag)


def _sum_queries(tokens: ReadTokens) -> _Centres:
    """Sums over rotated queries [H,T,d], turned back first."""
    x = tokens.q.float()
    if tokens.theta is not None:
        at = torch.arange(tokens.offset, tokens.offset + x.shape[1], device=x.device)
        cos, sin = rotation(tokens.theta, at, torch.float32)
        x = rotate(x.transpose(0, 1)[None], (cos, -sin))[0].transpose(0, 1)
    pairs = x.reshape(*x.shape[:2], 2, -1)
    return _Centres(pairs[:, :, 0].sum(1), pairs[:, :, 1].sum(1), pairs.norm(dim=-2).sum(1))
