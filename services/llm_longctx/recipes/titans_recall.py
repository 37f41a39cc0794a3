"""`fovea-titans-*`: memories that keep pairs across segments, where attention alone has lost them.

One recipe, five layouts: `mac`, `mag`, `mal`, `lmm`, and `attention`, the twin of MAC without a memory, which sees no
further than its segment. Trained on up to 128 tokens, measured on up to 2,048.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from services.llm_longctx.recipes.recall import VOCAB, Recall, draw
from shared.training.recipe import Batch, Recipe, Schedule

__all__ = ["TitansAttentionRecall", "TitansLMMRecall", "TitansMACRecall", "TitansMAGRecall", "TitansMALRecall"]

LENGTHS = (64, 128, 256, 512, 1024, 2048)

_VALID, _TEST = 10**9, 2 * 10**9
"""Seeds that no training step has."""


class _TitansRecall(Recipe):
    """Key-value recall through a memory."""

    schedule: Schedule = Schedule(
        steps=6000, batch=32, rate=2e-3, floor=2e-5, warm_up=200, decay=1e-3,
        ema=0.99, clip=1.0, betas=(0.9, 0.95), validate_every=1000,
    )  # fmt: skip
    width: int = 64
    layers: int = 2
    heads: int = 4
    segment: int = 32
    window: int = 32
    persistent: int = 4
    depth: int = 1
    refresh: int = 16
    longest: int = Field(116, ge=12, description="Longest body in training.")
    answers: int = 256

    def config(self) -> dict[str, Any]:
        """A Titans model of the recipe's layout."""
        names = ("width", "layers", "heads", "segment", "window", "persistent", "depth", "refresh")
        return {"vocab": VOCAB, **{name: getattr(self, name) for name in names}}

    def prepare(self, cache: Path) -> str:
        """A digest of the first batches: the generator is the data."""
        first = [draw(np.random.default_rng((self.seed, step)), self.schedule.batch, 52).ids for step in range(4)]
        return hashlib.sha256(torch.cat(first).numpy().tobytes()).hexdigest()

    def batches(self, step: int, rng: np.random.Generator) -> Iterator[Batch]:
        """One batch of one length; lengths grow over the first third, so that short ones are learnt first."""
        reach = min(1.0, 0.2 + 2.4 * step / self.schedule.steps)
        body = 2 * int(rng.integers(6, 6 + max(1, int(reach * (self.longest - 12) / 2)) + 1))
        drawn = draw(rng, self.schedule.batch, body)
        yield {"ids": drawn.ids, "answers": drawn.answers.expand(len(drawn.ids), -1)}

    def loss(self, network: nn.Module, batch: Batch) -> Tensor:
        """Cross-entropy of the values, told by the token before each."""
        ids, answers = batch["ids"], batch["answers"][0]
        logits: Tensor = network(ids)[:, answers - 1]
        return functional.cross_entropy(logits.flatten(0, 1), ids[:, answers].flatten())

    def score(self, network: nn.Module) -> float:
        """Recall at the longest trained length."""
        return self._recall(network, self.longest, _VALID)

    def measure(self, network: nn.Module) -> dict[str, float]:
        """Recall at half to sixteen times the trained length."""
        return {f"recall_{n}": self._recall(network, n - 12, _TEST) for n in LENGTHS}

    def facts(self) -> dict[str, str]:
        """What the numbers mean."""
        return {
            "task": "Key-value recall: 8 fillers, 16 keys, 16 values; chance 0.0625.",
            "recall": f"Share of {self.answers} answers after reading N tokens as one stream.",
        }

    @torch.no_grad()
    def _recall(self, network: nn.Module, body: int, seed: int) -> float:
        drawn: Recall = draw(np.random.default_rng((seed, body)), self.answers // 4, body)
        found = torch.cat([network(part)[:, drawn.answers - 1].argmax(-1) for part in torch.split(drawn.ids, 16)])
        return float((found == drawn.expected).double().mean())


class TitansMACRecall(_TitansRecall):
    """Memory as context."""

    name: ClassVar[str] = "titans-mac-recall"
    weights: ClassVar[str] = "fovea-titans-mac"
    builds: ClassVar[str | None] = "titans-mac"


class TitansMAGRecall(_TitansRecall):
    """Memory as gate."""

    name: ClassVar[str] = "titans-mag-recall"
    weights: ClassVar[str] = "fovea-titans-mag"
    builds: ClassVar[str | None] = "titans-mag"


class TitansMALRecall(_TitansRecall):
    """Memory as layer."""

    name: ClassVar[str] = "titans-mal-recall"
    weights: ClassVar[str] = "fovea-titans-mal"
    builds: ClassVar[str | None] = "titans-mal"


class TitansLMMRecall(_TitansRecall):
    """Memory alone."""

    name: ClassVar[str] = "titans-lmm-recall"
    weights: ClassVar[str] = "fovea-titans-lmm"
    builds: ClassVar[str | None] = "titans-lmm"


class TitansAttentionRecall(_TitansRecall):
    """No memory: measured, never committed."""

    name: ClassVar[str] = "titans-attention-recall"
    weights: ClassVar[str] = "fovea-titans-attention"
    builds: ClassVar[str | None] = "titans-attention"
