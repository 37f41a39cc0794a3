"""Position encodings: the classic sinusoid, and rows fitted so that near places look alike.

Knows numbers; knows no network.
"""

import numpy as np
import torch
from torch import Tensor

_STEPS = 10_000
_WIDTH = 8.0


def sinusoid(places: int, width: int) -> Tensor:
    """Sine on even, cosine on odd channels, base 10,000: (place, channel)."""
    rates = torch.exp(torch.arange(0, width, 2) * (-np.log(10_000.0) / width))
    angles = torch.arange(places)[:, None] * rates
    return torch.stack((angles.sin(), angles.cos()), 2).flatten(1)[:, :width]


def fitted_positions(count: int, width: int, *, given: np.ndarray | None = None, steps: int = _STEPS) -> np.ndarray:
    """Rows whose cosine falls with their distance, exp(-(i - j)² / 8), and whose norms are equal (OAT, section 3.2).

    Random rows (k, width), fitted with Adam at 0.01; the same call always gives the same rows. The first rows `given`
    (g, width) are kept as they are: a trained network was trained with them.
    """
    known = np.zeros((0, width)) if given is None else np.asarray(given, float)[:count]
    places = np.arange(count)
    wanted = np.exp(-((places[:, None] - places) ** 2) / _WIDTH)
    rows = np.random.default_rng(0).standard_normal((count, width))
    rows[: len(known)] = known
    mean, square = np.zeros_like(rows), np.zeros_like(rows)
    for step in range(1, steps + 1 if len(known) < count else 1):
        slope = _slope(rows, wanted)
        mean, square = 0.9 * mean + 0.1 * slope, 0.999 * square + 0.001 * slope**2
        rows -= 0.01 * (mean / (1 - 0.9**step)) / (np.sqrt(square / (1 - 0.999**step)) + 1e-8)
        rows[: len(known)] = known
    return rows


def _slope(rows: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Gradient of (squared error of all cosines + variance of the norms) / (k (k - 1))."""
    count = len(rows)
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    unit = rows / norms
    error = unit @ unit.T - wanted
    towards = 4 * error @ unit
    tangent = (towards - (towards * unit).sum(1, keepdims=True) * unit) / norms
    spread = 2 * (norms - norms.mean()) / max(count - 1, 1) * unit
    return np.asarray((tangent + spread) / max(count * (count - 1), 1))
