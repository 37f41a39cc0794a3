"""A proof that no tour is much shorter: the 1-tree bound with node penalties (Held and Karp, 1970).

Knows distances; knows no tours beyond the length of one.
"""

import time

import numpy as np

from fovea_planning.solvers.exact import distances


def tour_bound(points: np.ndarray, known: float, *, rounds: int = 150, deadline: float = float("inf")) -> float:
    """A length that no closed tour over points (n, 2), n >= 3, falls below.

    A 1-tree is a spanning tree over all points but the first, and the two cheapest edges of the first. Every tour is
    one, so the cheapest is a bound; penalties that make its degrees more like a tour's raise it, in so many rounds or
    until the deadline, a `time.monotonic()` instant. The nearer the bound comes to the `known` length of a tour, the
    smaller the steps.
    """
    far, penalties = distances(points), np.zeros(len(points))
    best, step = 0.0, 1.0
    for _ in range(rounds):
        cost, degrees = _one_tree(far + penalties[:, None] + penalties)
        best = max(best, cost - 2 * penalties.sum())
        off = degrees - 2
        if not off.any() or time.monotonic() > deadline:
            break
        penalties += step * max(known - (cost - 2 * penalties.sum()), 0.0) / (off**2).sum() * off
        step *= 0.97
    return float(min(best, known))


def _one_tree(far: np.ndarray) -> tuple[float, np.ndarray]:
    """Cost and degrees (n,) of the cheapest 1-tree, by Prim's algorithm."""
    n = len(far)
    degrees = np.zeros(n)
    near, parent = far[1].copy(), np.ones(n, int)
    near[:2] = np.inf
    cost = 0.0
    for _ in range(n - 2):
        node = int(near.argmin())
        cost += float(near[node])
        degrees[node] += 1
        degrees[parent[node]] += 1
        closer = (far[node] < near) & (near < np.inf)
        parent[closer] = node
        near[closer] = far[node][closer]
        near[node] = np.inf
    first, second = np.argpartition(far[0, 1:], 1)[:2] + 1
    degrees[[0, first, second]] += (2, 1, 1)
    return cost + float(far[0, first] + far[0, second]), degrees
