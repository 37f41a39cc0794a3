"""Solves hulls and tours with a pointer network: points in its training frame, masks of steps that a hull excludes.

Knows points and slots (slot k is point k - 1, slot 0 the end); knows no weights.
"""

import numpy as np

from fovea_planning.solvers.exact import tour_lengths
from fovea_planning.solvers.geometry import crosses
from fovea_planning.solvers.pointer_inference import Fits, PointerInference


def normalise_points(points: np.ndarray, *, stretch: bool) -> np.ndarray:
    """Points (b, n, 2) moved and scaled into the unit square.

    `stretch` scales both axes on their own, which changes no hull; a tour needs the same scale for both.
    """
    low, high = points.min(1, keepdims=True), points.max(1, keepdims=True)
    span = high - low if stretch else (high - low).max(2, keepdims=True)
    return np.asarray((points - low) / np.where(span > 0, span, 1), np.float32)


def left_turn_mask(points: np.ndarray) -> Fits:
    """Points that may follow on a hull (b, n, 2): only left turns around the start, and the end after three corners."""
    rows = np.arange(len(points))

    def fits(slots: np.ndarray, free: np.ndarray) -> np.ndarray:
        taken, allowed = slots.shape[1], free.copy()
        for step in range(taken):
            allowed[rows, slots[:, step]] = False  # a hull visits no point twice
        if taken >= 2:
            first, second, before, last = (points[rows, slots[:, k].clip(min=1) - 1][:, None] for k in (0, 1, -2, -1))
            left = (crosses(before, last, points) > 0) & (crosses(first, second, points) > 0)
            allowed[:, 1:] &= left & (crosses(last, points, first) > 0)
        ended = (slots == 0).any(1)
        allowed[:, 0] = taken >= 3
        allowed[ended] = False
        return allowed

    return fits


def predict_hulls(net: PointerInference, points: np.ndarray) -> tuple[list[list[int]], np.ndarray]:
    """Hulls as the network sees them, counter-clockwise, for points (b, n, 2), and the probability of each step."""
    given = normalise_points(points, stretch=True)
    slots, log_probabilities = net.decode(given, points.shape[1] + 1, fits=left_turn_mask(given))
    chances = np.exp(np.take_along_axis(log_probabilities, slots[..., None], 2)[..., 0])
    orders = [
        [slot - 1 for slot in row[: row.index(0)]] if 0 in row else [s - 1 for s in row] for row in slots.tolist()
    ]
    return orders, chances


def predict_tours(net: PointerInference, points: np.ndarray, width: int = 8) -> np.ndarray:
    """The shortest tour (b, n) among the `width` likeliest, for points (b, n, 2); width 1 is greedy."""
    slots, _ = net.beam(normalise_points(points, stretch=False), width)
    tours = slots - 1
    lengths = tour_lengths(np.repeat(points[:, None], tours.shape[1], 1), tours)
    return np.asarray(tours[np.arange(len(points)), lengths.argmin(1)])
