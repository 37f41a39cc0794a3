"""Expected Attention (2025): the mean attention of queries to come, were they a Gaussian like the past's."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from services.llm_longctx.methods.core.eviction.method import EvictionMethod
from services.llm_longctx.methods.core.hook_inputs import ReadTokens, ScoringView
from shared.lm.host_transfer import take_rows
from shared.lm.rope import rotate, rotation


class ExpectedAttention(EvictionMethod):
    """Keeps what queries to come will probably attend to, by mean and covariance of the prompt's queries.

    Queries count before their rotation, which is then the mean one over the next `future` positions; as released, the
    spread that positions add is left out. With `critical` set `value_norm` to false: the norm would count twice.
    """

    name: ClassVar[str] = "expected_attention"
    evidence = "all queries"
    optional_knobs: ClassVar = frozenset(
        {"safeguard", "safeguard_rule", "beta", "critical", "first_stage", "critical_epsilon"}
    )
    contract_knobs: ClassVar[Sequence[Mapping[str, Any]]] = (
        {"ratio": 0.4, "future": 20, "sink": 2},
        {"budget": 13, "every": 3, "recent": 6, "allocation": "layer", "sink": 1, "epsilon": 0.1},
    )

    future: int = Field(512, ge=1, le=1 << 16, description="Positions that the mean rotation is taken over.")
    sink: int = Field(
        4, ge=0, le=65536, description="First entries, which are always kept, and whose queries don't count."
    )
    covariance: bool = Field(True, description="Whether the queries' spread counts, next to their mean.")
    value_norm: bool = Field(True, description="Whether scores are multiplied by the values' norms.")
    epsilon: float = Field(0.0, ge=0, description="Added to the expected attention before that.")

    @property
    def query_window(self) -> int:
        return self.recent if self.every is not None else 0

    @property
    def pyramid_window(self) -> int:
        return 0

    def summarize(self, summary: object, tokens: ReadTokens) -> object:
        if tokens.is_decoding:
            return None
        begin = min(max(self.sink - tokens.offset, 0), tokens.q.shape[1])
        added = _sum_queries(tokens.q[:, begin:], tokens.offset + begin, tokens.theta)
        return added if summary is None else _add(summary, added)

    def score(self, view: ScoringView) -> Tensor:
        sinks, (H, w) = view.positions < self.sink, view.q.shape[:2]
        if isinstance(view.summary, _Sums):
            R = H // len(view.kv_heads)
            sums = view.summary.take([g * R + i for g in view.kv_heads for i in range(R)])
        else:
            begin = min(max(self.sink - (view.tokens - w), 0), w)
            sums = _sum_queries(view.q[:, begin:], view.tokens - w + begin, view.theta)
        if not sums.count:
            return view.positions.to(view.k.dtype).masked_fill(sinks, math.inf)
        logits = self._logits(sums, view).masked_fill(sinks[:, None], -math.inf)
        attention = logits.softmax(-1).mean(1).nan_to_num()
        scores = (attention + self.epsilon) * view.v.norm(dim=-1) if self.value_norm else attention
        return scores.masked_fill(sinks, math.inf)

    def _logits(self, sums: _Sums, view: ScoringView) -> Tensor:
        """Log of the mean of exp(q·k/√d) over the Gaussian of queries to come: [G,R,n]."""
        (G, _, d), m = view.k.shape, sums.count
        mean = sums.first / m
        at = torch.arange(view.tokens, view.tokens + self.future, device=mean.device)
        turn = None if view.theta is None else _mean_turn(view.theta, at, mean.dtype)
        ahead = _turn(mean, turn).view(G, -1, d).to(view.k.dtype)
        logits: Tensor = ahead @ view.k.mT * d**-0.5
        if self.covariance:
            spread = sums.second / m - mean[:, :, None] * mean[:, None]
            spread = _turn(_turn(spread, turn).mT, turn).mT.reshape(G, -1, d, d).to(view.k.dtype)
            logits = logits + ((view.k[:, None] @ spread) * view.k[:, None]).sum(-1) / (2 * d)
        return logits


@dataclass(frozen=True, slots=True, eq=False)
class _Sums:
    """Sums over `count` queries before rotation: of themselves [H,d], and of their outer products [H,d,d]."""

    count: int
    first: Tensor
    second: Tensor

    def take(self, heads: list[int]) -> _Sums:
        """Rows of some query heads."""
        return _Sums(self.count, take_rows(self.first, heads), take_rows(self.second, heads))


def _sum_queries(q: Tensor, begin: int, theta: Tensor | None) -> _Sums:
    """Sums over rotated queries [H,T,d] from position `begin` on."""
    wide = torch.promote_types(q.dtype, torch.float32)
    x = q.to(wide)
    if theta is not None:
        cos, sin = rotation(theta, torch.arange(begin, begin + q.shape[1], device=q.device), wide)
        x = rotate(x.transpose(0, 1)[None], (cos, -sin))[0].transpose(0, 1)
    return _Sums(q.shape[1], x.sum(1), x.mT @ x)


def _add(one: object, other: _Sums) -> _Sums:
    if not isinstance(one, _Sums):
        return other
    return _Sums(one.count + other.count, one.first + other.first, one.second + other.second)


def _mean_turn(theta: Tensor, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Mean cosine and mean signed sine of a rotation over positions, [d] each."""
    cos, sin = rotation(theta, positions, dtype)
    return cos[0, :, 0].mean(0), sin[0, :, 0].mean(0)


def _turn(x: Tensor, turn: tuple[Tensor, Tensor] | None) -> Tensor:
    """Apply a mean rotation to the last axis; None turns nothing."""
    if turn is None:
        return x
    cos, sin = turn
    return x * cos + x.roll(x.shape[-1] // 2, -1) * sin
