"""Training recipe of the tiny decoder: random strings repeat, first at once, later with other strings between.

The loss counts only tokens that are determined by what came before, so all it can learn is where to look. Without the
gaps its heads would look back by one period and find nothing further away.
"""

import string
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from fovea_recipes.training.intervals import Indices, bootstrap
from fovea_recipes.training.recipe import Batch, Recipe, Schedule
from services.interpretability.models.tiny_induction import byte_tokenizer

HELD_OUT = 2**31
"""Seeds of validation and test strings; training draws by its steps."""

LETTERS = string.ascii_lowercase
"""Alphabet of most strings."""

PRINTABLE = "".join(map(chr, range(32, 127)))
"""Alphabet of the others."""

_TOKENIZER = byte_tokenizer()


class TinyInduction(Recipe, name="tiny-induction", weights="tiny-induction"):
    """Repeating strings over bytes."""

    schedule: Schedule = Schedule(
        steps=3000, batch=12, rate=3e-3, floor=3e-4, warm_up=50, decay=0.01, clip=1.0, validate_every=150
    )
    tokens: int = 256
    strings: int = 12
    shortest: int = 4
    longest: int = 15
    width: int = 64
    layers: int = 3
    heads: int = 4
    kv_heads: int = 2

    def config(self) -> dict[str, Any]:
        return {"width": self.width, "layers": self.layers, "heads": self.heads, "kv_heads": self.kv_heads}

    def prepare(self, cache: Path) -> str:
        return f"up to {self.strings} random strings of {self.shortest} to {self.longest} letters by turns, from seeds"

    def batches(self, step: int, rng: np.random.Generator) -> Iterator[Batch]:
        """Yield one batch of strings.

        One string repeats in the first 15 % of the steps, then more do, all of them from 55 % on: with wide gaps from
        the start, these steps do not suffice to copy.
        """
        ready = (step / self.schedule.steps - 0.15) / 0.4
        yield self._draw(rng, self.schedule.batch, 1 + round((self.strings - 1) * min(max(ready, 0), 1)))

    def loss(self, network: nn.Module, batch: Batch) -> Tensor:
        known = batch["known"][:, 1:]
        return functional.cross_entropy(network(batch["ids"][:, :-1])[known], batch["ids"][:, 1:][known])

    def score(self, network: nn.Module) -> float:
        return _share(*self._count(network, HELD_OUT, 32, self.strings))

    def measure(self, network: nn.Module) -> dict[str, float]:
        found = {}
        for name, seed, most in (("copied", HELD_OUT + 1, 1), ("returned", HELD_OUT + 2, self.strings)):
            right, asked = self._count(network, seed, 256, most)
            found[name] = _share(right, asked)
            self._intervals[name] = bootstrap(256, partial(_share, right, asked))
        return found

    def facts(self) -> dict[str, str]:
        return {"data": self.prepare(Path())}

    def _count(self, network: nn.Module, seed: int, samples: int, most: int) -> tuple[Tensor, Tensor]:
        """How many tokens of each sample are right, and how many are determined."""
        batch = self._draw(np.random.default_rng(seed), samples, most)
        known = batch["known"][:, 1:]
        with torch.no_grad():
            right = network(batch["ids"][:, :-1]).argmax(-1) == batch["ids"][:, 1:]
        return (right & known).sum(1), known.sum(1)

    def _draw(self, rng: np.random.Generator, samples: int, most: int) -> Batch:
        rows = [self._returning(rng, most) for _ in range(samples)]
        ids, known = (np.array(part) for part in zip(*rows, strict=True))
        return {"ids": torch.from_numpy(ids), "known": torch.from_numpy(known)}

    def _returning(self, rng: np.random.Generator, most: int) -> tuple[list[int], list[bool]]:
        """Repeat one to `most` random strings in random order; return ids and which of them are determined."""
        letters = list(LETTERS if rng.random() < 0.6 else PRINTABLE)
        sizes = rng.integers(self.shortest, self.longest + 1, int(rng.integers(1, most + 1)))
        strings = ["".join(rng.choice(letters, size)) for size in sizes]
        text, known, seen = "", list[bool](), set[int]()
        while len(text) < self.tokens:
            chosen = int(rng.integers(len(strings)))
            # Which string comes next is random, so its first token can't be known either, unless there is only one.
            known += [chosen in seen and (i > 0 or len(strings) == 1) for i in range(sizes[chosen])]
            text += strings[chosen]
            seen.add(chosen)
        return _TOKENIZER.encode(text)[: self.tokens], known[: self.tokens]


def _share(right: Tensor, asked: Tensor, samples: Indices | slice = slice(None)) -> float:
    """Share of the asked tokens of some samples that are right."""
    return float(right[samples].sum() / asked[samples].sum())
