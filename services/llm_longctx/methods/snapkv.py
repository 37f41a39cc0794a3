"""SnapKV (2024): what the prompt's last queries read, pooled over neighbours; the window itself stays."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, field_validator
from torch import Tensor
from torch.nn import functional

from services.llm_longctx.methods.core.eviction.method import EvictionMethod
from services.llm_longctx.methods.core.hook_inputs import ScoringView


class SnapKv(EvictionMethod):
    """Keeps what the last queries attend to, and the neighbours of that; one set per key/value head.

    The authors choose per query head on repeated keys; here the heads of a group vote together.
    """

    name: ClassVar[str] = "snapkv"
    evidence = "last queries"
    optional_knobs: ClassVar = frozenset({"critical", "first_stage", "critical_epsilon"})

    window: int = Field(64, ge=1, le=4096, description="Last queries that vote; their own entries stay.")
    kernel: int = Field(5, ge=1, le=1023, description="Positions that are pooled, an odd number.")
    pooling: Literal["avg", "max"] = Field("avg", description="`avg` counts missing neighbours as zeros.")

    contract_knobs: ClassVar[Sequence[Mapping[str, Any]]] = (
        {"window": 5, "kernel": 3, "ratio": 0.4},
        {"window": 3, "kernel": 3, "budget": 13, "allocation": "layer", "safeguard": 0.6, "every": 3, "recent": 4},
        {"window": 4, "budget": 20, "allocation": "pyramid", "beta": 2.0},
    )

    @field_validator("kernel")
    @classmethod
    def _is_odd(cls, kernel: int) -> int:
        if kernel % 2 == 0:
            raise ValueError("kernel must be odd, so that it has a middle")
        return kernel

    @property
    def query_window(self) -> int:
        return self.window

    def score(self, view: ScoringView) -> Tensor:
        q = view.q[:, -self.window :]
        (H, w, d), (G, n) = q.shape, view.positions.shape
        begin = view.tokens - w
        logits = (q.reshape(G, -1, d) @ view.k.mT).view(G, H // G, w, n) * d**-0.5
        at = torch.arange(begin, view.tokens, device=q.device)
        seen = logits.masked_fill(view.positions[:, None, None] > at[:, None], -math.inf).softmax(-1)
        # Entries are in order of position, so that the window's are the last ones and no pool reaches into them.
        recent = view.positions >= begin
        return self._pool(seen.mean(2), recent).mean(1).masked_fill(recent, math.inf)

    def _pool(self, votes: Tensor, recent: Tensor) -> Tensor:
        """Pool votes [G,R,n] over neighbours that are not `recent` [G,n]."""
        outside = 0.0 if self.pooling == "avg" else -math.inf
        old, half = votes.masked_fill(recent[:, None], outside), self.kernel // 2
        if self.pooling == "max":
            return functional.max_pool1d(old, self.kernel, 1, half)
        return functional.avg_pool1d(old, self.kernel, 1, half, count_include_pad=True)
