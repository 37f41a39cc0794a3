"""Synthetic key-value recall data: pairs are written somewhere in filler, and asked for at its end.

    f f k₃ v₇ f f f f k₁ v₂ … | mark k₁ v₂ | mark k₃ v₇ | …

A model that reads all of it can answer; one that has lost the pair guesses one of sixteen values. Everything follows
from a seed. Knows tokens; knows no model.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

FILLERS, KEYS, VALUES = 8, 16, 16
MARK = FILLERS + KEYS + VALUES
LANDMARK = MARK + 1
VOCAB = LANDMARK + 1

VALID_SEED, TEST_SEED = 10**9, 2 * 10**9
"""Seeds that no training step has."""

PAIRS = 4
QUESTION_TOKENS = 3 * PAIRS
"""Tokens of the questions and their answers."""


@dataclass(frozen=True, slots=True)
class RecallBatch:
    """A batch of recall rows of equal length.

    Attributes:
        ids: Tokens [B,T].
        answers: Positions of the values that are asked for [A]; the same in all rows.
        written: Where each asked pair's key stands [B,A].
    """

    ids: Tensor
    answers: Tensor
    written: Tensor

    @property
    def expected(self) -> Tensor:
        """The values [B,A]."""
        return self.ids[:, self.answers]


def draw(rng: np.random.Generator, batch: int, body: int, questions: int | None = None) -> RecallBatch:
    """Rows of `body` tokens (even, at least 8) with four pairs in them, and questions behind; all follows from `rng`.

    Without `questions` each pair is asked for once, else so many times as it happens. Training asks often: a model that
    is asked for each pair once gets half of the answers right by naming any value that it has not named yet, and is
    slow to learn more.
    """
    count = PAIRS if questions is None else questions
    ids = rng.integers(0, FILLERS, (batch, body + 3 * count))
    keys = FILLERS + _distinct(rng, batch, KEYS)
    values = FILLERS + KEYS + rng.integers(0, VALUES, (batch, PAIRS))
    slots = 2 * _distinct(rng, batch, body // 2)
    rows = np.arange(batch)[:, None]
    ids[rows, slots], ids[rows, slots + 1] = keys, values
    order = _distinct(rng, batch, PAIRS) if questions is None else rng.integers(0, PAIRS, (batch, count))
    asked = body + 3 * np.arange(count)
    ids[:, asked] = MARK
    ids[rows, asked + 1], ids[rows, asked + 2] = keys[rows, order], values[rows, order]
    return RecallBatch(torch.from_numpy(ids), torch.from_numpy(asked + 2), torch.from_numpy(slots[rows, order]))


def _distinct(rng: np.random.Generator, batch: int, among: int) -> np.ndarray:
    """Four different numbers below `among` per row [B,4]."""
    return rng.random((batch, among)).argsort(1)[:, :PAIRS]
