"""Scanpaths from logits: one likeliest path, or drawn ones, step by step. Knows numbers; knows no network.

With n objects, index n ends a path and n + 1 is padding, which is never chosen.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

Step = Callable[[np.ndarray], np.ndarray]
"""Fixations so far (p, t) of p paths → logits (p, n + 2) of the next."""


@dataclass(frozen=True, slots=True, eq=False)
class DecodedScanpath:
    """One scanpath.

    Attributes:
        objects: Fixated objects (t,), without the end.
        probabilities: Expected fixation at each step (t, n + 1), the end last.
        ended: Whether the path ended by itself.
    """

    objects: list[int]
    probabilities: np.ndarray
    ended: bool


def decode_scanpaths(
    step: Step, paths: int, longest: int, *, draw: np.random.Generator | None = None, barred: np.ndarray | None = None
) -> list[DecodedScanpath]:
    """Walk several paths p at once, of at most `longest` fixations; the first step never ends a path.

    `step` is the network, given all fixations so far; `draw` draws each fixation from its probabilities, None takes the
    likeliest. `barred` (n,) or (p, n) are places where there is no object. Returns the paths, in order.
    """
    fixations = np.zeros((paths, 0), np.int64)
    lengths, expected = np.full(paths, -1), list[np.ndarray]()
    while fixations.shape[1] <= longest and (lengths < 0).any():
        probabilities = _expected(step(fixations), barred, first=not expected)
        end = probabilities.shape[1] - 1
        chosen = probabilities.argmax(1) if draw is None else _drawn(probabilities, draw)
        lengths = np.where((lengths < 0) & (chosen == end), fixations.shape[1], lengths)
        fixations = np.concatenate((fixations, chosen[:, None]), 1)
        expected.append(probabilities)
    stacked = np.stack(expected, 1)
    return [
        DecodedScanpath(
            fixations[p, : (t if t >= 0 else longest)].tolist(), stacked[p, : (t if t >= 0 else longest)], bool(t >= 0)
        )
        for p, t in enumerate(lengths)
    ]


def _expected(logits: np.ndarray, barred: np.ndarray | None, *, first: bool) -> np.ndarray:
    """Probabilities (p, n + 1) of the objects and the end."""
    allowed = logits[:, :-1].astype(np.float64)
    if barred is not None:
        allowed[:, :-1] = np.where(barred, -np.inf, allowed[:, :-1])
    if first:
        allowed[:, -1] = -np.inf
    odds = np.exp(allowed - allowed.max(1, keepdims=True))
    return np.asarray(odds / odds.sum(1, keepdims=True))


def _drawn(probabilities: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    """One object of each row, by its probabilities."""
    passed = probabilities.cumsum(1) < draw.random((len(probabilities), 1))
    return np.asarray(np.minimum(passed.sum(1), probabilities.shape[1] - 1))
