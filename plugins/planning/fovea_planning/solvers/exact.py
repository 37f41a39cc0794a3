"""The shortest tour, proven: dynamic programming over subsets (Held and Karp, 1962), for many small instances at once.

Knows distances; knows no network. Time and memory grow with n² · 2ⁿ.
"""

import numpy as np

MAX_EXACT_POINTS = 12
"""Most points: 12 take a tenth of a second, each further one twice as long."""


def distances(points: np.ndarray) -> np.ndarray:
    """Euclidean distances (…, n, n) of points (…, n, 2)."""
    return np.asarray(np.linalg.norm(points[..., :, None, :] - points[..., None, :, :], axis=-1))


def tour_lengths(points: np.ndarray, tours: np.ndarray) -> np.ndarray:
    """Lengths (…) of closed tours (…, n) over points (…, n, 2)."""
    visited = np.take_along_axis(points, tours[..., None].astype(int), -2)
    return np.asarray(np.linalg.norm(visited - np.roll(visited, -1, -2), axis=-1).sum(-1))


def optimal_tours(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Shortest closed tours of several instances of points (b, n, 2), n <= 12.

    Returns tours (b, n) from point 0 with the second index below the last, and their lengths (b,).
    """
    batch, n = points.shape[:2]
    if n <= 3:
        tours = np.tile(np.arange(n), (batch, 1))
        return tours, tour_lengths(points, tours)
    far = distances(points)
    m, between, home = n - 1, far[:, 1:, 1:], far[:, 1:, 0]
    best = np.full((1 << m, m, batch), np.inf)  # cheapest way from 0 through a set that ends in its member j
    came = np.zeros((1 << m, m, batch), np.int8)
    for j in range(m):
        best[1 << j, j] = home[:, j]
    towards = np.ascontiguousarray(between.transpose(2, 1, 0))  # [j, k, b]
    for group in range(1, 1 << m):
        if group & (group - 1):
            for j in (j for j in range(m) if group >> j & 1):
                ways = best[group ^ 1 << j] + towards[j]
                came[group, j] = ways.argmin(0)
                best[group, j] = np.take_along_axis(ways, came[group, j][None].astype(int), 0)[0]
    whole = best[-1] + home.T
    tours = _followed(came, whole.argmin(0))
    return tours, whole.min(0)


def _followed(came: np.ndarray, last: np.ndarray) -> np.ndarray:
    """Tours (b, n) from the last point back, turned so that the second index is below the last."""
    m, batch = came.shape[1:]
    everyone, group = np.arange(batch), np.full(batch, (1 << m) - 1)
    tours = np.zeros((batch, m + 1), int)
    for step in range(m, 0, -1):
        tours[:, step] = last + 1
        before = came[group, last, everyone].astype(int)
        group, last = group ^ (1 << last), before
    backwards = tours[:, 1] > tours[:, -1]
    tours[backwards, 1:] = tours[backwards, :0:-1]
    return tours
