"""Calibrated scores: of the answers with a score of 0.8, eight in ten are right.

Knows how raw scores become calibrated ones; training fits the constants.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]

EPS = 1e-6


@dataclass(frozen=True, slots=True)
class Platt:
    """A score p becomes sigmoid(slope · logit(p) + offset) (Platt, 1999)."""

    slope: float = 1.0
    offset: float = 0.0

    def __call__(self, scores: ArrayLike) -> Array:
        """Calibrated scores, of any shape; their order stays."""
        return _sigmoid(self.slope * logit(scores) + self.offset)

    def inverse(self, scores: ArrayLike) -> Array:
        """The raw scores that become these: what to compare with inside a network's own output."""
        return _sigmoid((logit(scores) - self.offset) / self.slope)


def logit(scores: ArrayLike) -> Array:
    """Log-odds of scores, which are kept away from 0 and 1."""
    p = np.clip(np.asarray(scores, np.float64), EPS, 1 - EPS)
    return np.asarray(np.log(p) - np.log1p(-p))


def _sigmoid(x: Array) -> Array:
    return np.asarray(1 / (1 + np.exp(-x)))
