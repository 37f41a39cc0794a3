"""Teaches the tiny decoder to copy: random strings of a few letters that come again and again.

Only tokens that can be known from what came before are trained on, so that all it learns is where to look.
"""

from __future__ import annotations

import string
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from services.interpretability.bytes_tokenizer import byte_tokenizer
from shared.training.recipe import Batch, Recipe, Schedule

__all__ = ["TinyInduction"]

HELD_OUT = 2**31
"""Seeds of validation and test strings; training draws by its steps."""

LETTERS = string.ascii_lowercase
"""What strings are made of."""

_TOKENIZER = byte_tokenizer()


class TinyInduction(Recipe):
    """Repeated strings, over bytes."""

    name: ClassVar[str] = "tiny-induction"
    weights: ClassVar[str] = "tiny-induction"

    schedule: Schedule = Schedule(
        steps=450, batch=32, rate=2e-3, floor=2e-4, warm_up=50, decay=0.01, clamp=0.05, validate_every=50
    )
    tokens: int = 64
    shortest: int = 4
    longest: int = 15
    width: int = 64
    layers: int = 3
    heads: int = 4
    kv_heads: int = 2

    def config(self) -> dict[str, Any]:
        """The network's size."""
        return {"width": self.width, "layers": self.layers, "heads": self.heads, "kv_heads": self.kv_heads}

    def prepare(self, cache: Path) -> str:
        """Nothing to fetch: all strings follow from seeds."""
        return f"random strings of {self.shortest} to {self.longest} letters, repeated, from seeds"

    def batches(self, step: int, rng: np.random.Generator) -> Iterator[Batch]:
        """One batch of strings."""
        yield self._draw(rng, self.schedule.batch)

    def loss(self, network: nn.Module, batch: Batch) -> Tensor:
        """Cross-entropy of the tokens that can be known."""
        known = batch["known"][:, 1:]
        return functional.cross_entropy(network(batch["ids"][:, :-1])[known], batch["ids"][:, 1:][known])

    def score(self, network: nn.Module) -> float:
        """Share of right tokens in held-out strings."""
        return self._accuracy(network, HELD_OUT, 32)

    def measure(self, network: nn.Module) -> dict[str, float]:
        """Share of right tokens in other held-out strings."""
        return {"copied": self._accuracy(network, HELD_OUT + 1, 256)}

    def facts(self) -> dict[str, str]:
        """What it is trained on."""
        return {"data": self.prepare(Path())}

    def _accuracy(self, network: nn.Module, seed: int, samples: int) -> float:
        batch = self._draw(np.random.default_rng(seed), samples)
        known = batch["known"][:, 1:]
        with torch.no_grad():
            right = network(batch["ids"][:, :-1]).argmax(-1) == batch["ids"][:, 1:]
        return float(right[known].double().mean())

    def _draw(self, rng: np.random.Generator, samples: int) -> Batch:
        rows = [self._repeated(rng) for _ in range(samples)]
        ids, known = (np.array(part) for part in zip(*rows, strict=True))
        return {"ids": torch.from_numpy(ids), "known": torch.from_numpy(known)}

    def _repeated(self, rng: np.random.Generator) -> tuple[list[int], list[bool]]:
        """A random string over and over, and which of its tokens can be known."""
        size = int(rng.integers(self.shortest, self.longest + 1))
        once = "".join(rng.choice(list(LETTERS), size))
        ids = _TOKENIZER.encode(once * (self.tokens // size + 1))[: self.tokens]
        return ids, [i > size for i in range(len(ids))]
