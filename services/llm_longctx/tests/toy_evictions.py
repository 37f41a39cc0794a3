"""Published scores as a few lines each, by which the base of eviction methods is tested."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from services.llm_longctx.methods.core.eviction_method import EvictionMethod
from services.llm_longctx.methods.core.hook_inputs import ScoringView


class KNorm(EvictionMethod):
    """Keys of small norm attract attention."""

    name = "knorm"
    optional_knobs = frozenset({"recent"})
    contract_knobs: ClassVar = (
        {"ratio": 0.4},
        {"budget": 13, "allocation": "layer", "safeguard": 0.4},
        {"budget": 13, "allocation": "layer", "safeguard": 0.4, "safeguard_rule": "mix", "prefill": "none", "every": 4},
        {"ratio": 0.5, "allocation": "pyramid", "beta": 3.0, "every": 3},
        {"budget": 11, "prefill": "chunk", "allocation": "layer"},
    )

    def score(self, view: ScoringView) -> Tensor:
        """The smaller, the better."""
        return -view.k.norm(dim=-1)


class KeyDiff(EvictionMethod):
    """Keys unlike the mean direction matter."""

    name = "keydiff"

    def score(self, view: ScoringView) -> Tensor:
        """The less alike, the better."""
        anchor = functional.normalize(view.k, dim=-1).mean(1, keepdim=True)
        return -functional.cosine_similarity(view.k, anchor, dim=-1)


class Tova(EvictionMethod):
    """What the last query reads, averaged over a layer's heads."""

    name = "tova"

    def score(self, view: ScoringView) -> Tensor:
        """The last position is protected."""
        (H, _, d), G = view.q.shape, len(view.k)
        logits = view.q[:, -1:] @ view.k.repeat_interleave(H // G, 0).mT * d**-0.5
        mean = logits.softmax(-1).mean((0, 1)).expand(G, -1)
        return mean.masked_fill(view.positions == view.tokens - 1, math.inf)


class SnapKV(EvictionMethod):
    """What the last queries read, pooled over neighbours."""

    name = "snapkv"
    optional_knobs = frozenset()
    contract_knobs: ClassVar = (
        {"window": 5, "kernel": 3, "ratio": 0.4},
        {"window": 3, "kernel": 3, "budget": 13, "allocation": "layer", "safeguard": 0.6, "every": 3, "recent": 4},
        {"window": 4, "budget": 20, "allocation": "pyramid", "beta": 2.0},
    )
    window: int = Field(64, ge=1, description="Last queries.")
    kernel: int = Field(5, ge=1, description="Neighbours, odd.")

    @property
    def query_window(self) -> int:
        """The window."""
        return self.window

    def score(self, view: ScoringView) -> Tensor:
        """The window itself is protected."""
        q = view.q[:, -self.window :]
        (H, w, d), (G, n) = q.shape, view.positions.shape
        at = torch.arange(view.tokens - w, view.tokens)
        logits = (q.reshape(G, -1, d) @ view.k.mT).view(G, H // G, w, n) * d**-0.5
        logits = logits.masked_fill(view.positions[:, None, None] > at[:, None], -math.inf)
        old = logits.softmax(-1).mean(2).masked_fill(view.positions[:, None] >= view.tokens - w, 0)
        pooled = functional.avg_pool1d(old, self.kernel | 1, 1, (self.kernel | 1) // 2, count_include_pad=True).mean(1)
        return pooled.masked_fill(view.positions >= view.tokens - w, math.inf)
