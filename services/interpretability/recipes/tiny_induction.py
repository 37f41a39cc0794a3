"""Teaches the tiny decoder to copy: random strings that come again, and values of keys in JSON.

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
from shared.lm.needle import key_value
from shared.training.recipe import Batch, Recipe, Schedule

__all__ = ["TinyInduction"]

HELD_OUT = 2**31
"""Seeds of validation and test samples start here; training draws below."""


class TinyInduction(Recipe):
    """Repeated strings and key-value look-ups, over bytes."""

    name: ClassVar[str] = "tiny-induction"
    weights: ClassVar[str] = "tiny-induction"

    schedule: Schedule = Schedule(
        steps=700, batch=16, rate=2e-3, floor=2e-4, warm_up=50, decay=0.01, clamp=0.05, validate_every=50
    )
    first: int = 350
    """Steps on short strings only: copying is found there, within minutes."""
    tokens: int = 256
    width: int = 64
    layers: int = 3
    heads: int = 4
    kv_heads: int = 2

    def config(self) -> dict[str, Any]:
        """The network's size."""
        return {"width": self.width, "layers": self.layers, "heads": self.heads, "kv_heads": self.kv_heads}

    def prepare(self, cache: Path) -> str:
        """Nothing to fetch: all samples follow from seeds."""
        return "random strings and key-value objects, from seeds"

    def batches(self, step: int, rng: np.random.Generator) -> Iterator[Batch]:
        """Short strings at first; then one batch, half of each kind."""
        yield _short(rng, 2 * self.schedule.batch) if step < self.first else self._draw(rng, self.schedule.batch)

    def loss(self, network: nn.Module, batch: Batch) -> Tensor:
        """Cross-entropy of the tokens that can be known."""
        logits = network(batch["ids"][:, :-1])
        known = batch["known"][:, 1:]
        return functional.cross_entropy(logits[known], batch["ids"][:, 1:][known])

    def score(self, network: nn.Module) -> float:
        """Share of right tokens in held-out values."""
        return self._accuracy(network, np.random.default_rng(HELD_OUT), 16)

    def measure(self, network: nn.Module) -> dict[str, float]:
        """Share of right tokens in other held-out values."""
        return {"value_accuracy": self._accuracy(network, np.random.default_rng(HELD_OUT + 1), 64)}

    def facts(self) -> dict[str, str]:
        """What it is trained on."""
        return {"data": self.prepare(Path())}

    def _accuracy(self, network: nn.Module, rng: np.random.Generator, samples: int) -> float:
        right = total = 0
        with torch.no_grad():
            for _ in range(samples):
                ids, known = _look_up(rng, HELD_OUT, answer_only=True)
                best: Tensor = network(torch.tensor([ids[:-1]]))[0].argmax(-1)
                wanted = torch.tensor(known[1:])
                right += int((best[wanted] == torch.tensor(ids[1:])[wanted]).sum())
                total += int(wanted.sum())
        return right / total

    def _draw(self, rng: np.random.Generator, samples: int) -> Batch:
        ids, known = np.zeros((samples, self.tokens), np.int64), np.zeros((samples, self.tokens), bool)
        for row in range(samples):
            drawn = _repeated(rng, self.tokens) if row % 2 else _look_up(rng, 0)
            text, knowable = (part[-self.tokens :] for part in drawn)
            ids[row, : len(text)] = text
            known[row, : len(text)] = knowable
        return {"ids": torch.from_numpy(ids), "known": torch.from_numpy(known)}


def _short(rng: np.random.Generator, samples: int, tokens: int = 64) -> Batch:
    """Strings of a few letters, over and over."""
    rows = [_repeated(rng, tokens, string.ascii_lowercase, (4, 16)) for _ in range(samples)]
    ids, known = (np.array(part) for part in zip(*rows, strict=True))
    return {"ids": torch.from_numpy(ids), "known": torch.from_numpy(known)}


_LETTERS = string.ascii_lowercase + string.ascii_uppercase + string.digits + ' ":,{}'


def _repeated(
    rng: np.random.Generator, tokens: int, letters: str = _LETTERS, sizes: tuple[int, int] = (8, 85)
) -> tuple[list[int], list[bool]]:
    """A random string over and over."""
    size = int(rng.integers(*sizes))
    once = "".join(rng.choice(list(letters), size))
    ids = _TOKENIZER.encode(once * (tokens // size + 1))[:tokens]
    return ids, [i > size for i in range(len(ids))]


def _look_up(rng: np.random.Generator, seed_from: int, *, answer_only: bool = False) -> tuple[list[int], list[bool]]:
    """A key-value object with its question answered; known are the values of shots and answer."""
    seed, pairs = seed_from + int(rng.integers(2**31)), int(rng.integers(4, 8))
    prompt = key_value(_TOKENIZER, pairs=pairs, seed=seed, shots=2, key_chars=4, value_words=0)
    ids = [*prompt.ids, *prompt.answer_ids]
    known = [i >= len(prompt.ids) for i in range(len(ids))]
    if not answer_only:
        shown = prompt.text.index("\nKey: ")
        lines = prompt.text[shown:]
        place = 0
        while (place := lines.find("\nValue: ", place)) >= 0:
            known[shown + place + 8 : shown + place + 16] = [True] * 8
            place += 1
    return ids, known


_TOKENIZER = byte_tokenizer()
