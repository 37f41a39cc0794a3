"""LagKV (2025): entries that vary much, measured by the partition that lags behind theirs, carry information."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from services.llm_longctx.methods.core.eviction.method import EvictionMethod
from services.llm_longctx.methods.core.hook_inputs import ScoringView


class LagKv(EvictionMethod):
    """Keeps, of every partition, the keys and values that vary most on the scale of the next one. Needs no query.

    The last partition and what follows it have no next one: they count most. Texts shorter than two partitions are cut
    as `streamingllm` does.
    """

    name: ClassVar[str] = "lagkv"
    evidence = "keys and values"
    optional_knobs: ClassVar = frozenset(
        {"safeguard", "safeguard_rule", "beta", "recent", "critical", "first_stage", "critical_epsilon"}
    )
    contract_knobs: ClassVar[Sequence[Mapping[str, Any]]] = (
        {"ratio": 0.4, "lag": 5, "sink": 2},
        {"budget": 13, "lag": 4, "every": 3, "allocation": "layer", "cross": True},
    )

    sink: int = Field(4, ge=0, le=65536, description="First entries, which are always kept.")
    lag: int = Field(128, ge=1, le=1 << 16, description="Entries of a partition.")
    cross: bool = Field(False, description="Partitions compete by their raw scores, not each by its ranks.")

    def score(self, view: ScoringView) -> Tensor:
        n, sinks = view.k.shape[1], view.positions < self.sink
        # Sinks are never evicted, so that the first entries held are they.
        f = min(self.sink, n)
        partitions = (n - f) // self.lag
        if partitions < 2:
            order = (torch.arange(n, device=sinks.device) - f).to(view.k.dtype) / max(n - f, 1)
            return order.expand(len(view.k), -1).masked_fill(sinks, math.inf)
        scores = view.k.new_ones(view.k.shape[:2])
        end = f + (partitions - 1) * self.lag
        mean = (self._variation(view.k[:, f:], partitions) + self._variation(view.v[:, f:], partitions)) / 2
        scores[:, f:end] = (mean if self.cross else _ranks(mean) / self.lag).flatten(1)
        return scores.masked_fill(sinks, math.inf)

    def _variation(self, x: Tensor, partitions: int) -> Tensor:
        """Softmax within each partition but the last of how much its rows vary: [G,n,d] → [G,partitions-1,lag]."""
        blocks = x[:, : partitions * self.lag].reshape(len(x), partitions, self.lag, -1)
        low, high = blocks[:, 1:].amin(2, keepdim=True), blocks[:, 1:].amax(2, keepdim=True)
        scaled = torch.where(high > low, (blocks[:, :-1] - low) / (high - low), 0.0)
        return scaled.std(-1).softmax(-1)


def _ranks(x: Tensor) -> Tensor:
    """Ascending ranks along the last axis from 0; of equal numbers the first comes first."""
    order = x.argsort(dim=-1, stable=True)
    return order.argsort(dim=-1).to(x.dtype)
