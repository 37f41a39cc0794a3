"""How alike two scanpaths are: alignment of their objects, behaviour of search, shape in space, and saliency.

Knows sequences of objects and points; knows no model. A scanpath here has no end token.
"""

import heapq
from collections.abc import Sequence
from itertools import groupby

import numpy as np

Behaviour = tuple[float, float, float, float, float]
"""Whether the last fixation is the target, length, and the shares of search, refixation and revisit."""

Point = Sequence[float]


def sequence_score(first: Sequence[int], second: Sequence[int]) -> float:
    """Needleman-Wunsch alignment of two sequences of objects (match 1, mismatch and gap 0) over the longer length."""
    if not (first or second):
        return 1.0
    row = np.zeros(len(second) + 1)
    for one in first:
        before = row
        row = np.zeros_like(before)
        for index, other in enumerate(second, start=1):
            row[index] = max(before[index - 1] + (one == other), before[index], row[index - 1])
    return float(row[-1] / max(len(first), len(second)))


def behaviour(path: Sequence[int], target: int) -> Behaviour:
    """How a scanpath searches (OAT, section 5).

    Of equal objects in a row the first is search where the object is new, revisit where it is not; every repeat is a
    refixation. Shares are of the length and sum to 1; of an empty path all are 0.
    """
    if not path:
        return 0.0, 0.0, 0.0, 0.0, 0.0
    visited: set[int] = set()
    search = refixation = revisit = 0
    for item, run in groupby(path):
        refixation += sum(1 for _ in run) - 1
        revisit += item in visited
        search += item not in visited
        visited.add(item)
    n = len(path)
    return float(path[-1] == target), float(n), search / n, refixation / n, revisit / n


def behaviour_delta(found: Sequence[Behaviour], true: Sequence[Behaviour]) -> float:
    """Mean over the five averages of |found - true| / true; a measure that is 0 in truth is left out."""
    ours, theirs = np.mean(found, axis=0), np.mean(true, axis=0)
    there = theirs > 0
    return float(np.mean(np.abs(ours - theirs)[there] / theirs[there]))


def multimatch(
    first: Sequence[Point],
    second: Sequence[Point],
    screen: tuple[float, float] = (1680, 1050),
    durations: tuple[Sequence[float], Sequence[float]] | None = None,
) -> tuple[float, float, float, float, float]:
    """MultiMatch of two scanpaths, each 1 for equal ones: vector, direction, length, position, duration.

    Points x, y are in the units of the screen (width, height); fewer than three are padded by repeating the last.
    Without the `durations` of the fixations of both, the last similarity is 1.
    """
    a, b = (_padded(points) for points in (first, second))
    u, v = np.diff(a, axis=0), np.diff(b, axis=0)
    rows, columns = zip(*_alignment(np.linalg.norm(u[:, None] - v[None], axis=2)), strict=True)
    i, j = list(rows), list(columns)
    diagonal = float(np.hypot(*screen))
    angles = np.abs(np.arctan2(u[i, 1], u[i, 0]) - np.arctan2(v[j, 1], v[j, 0]))
    lengths = np.abs(np.linalg.norm(u[i], axis=1) - np.linalg.norm(v[j], axis=1))
    differences = (
        np.linalg.norm(u[i] - v[j], axis=1) / (2 * diagonal),
        np.minimum(angles, 2 * np.pi - angles) / np.pi,
        lengths / diagonal,
        np.linalg.norm(a[i] - b[j], axis=1) / diagonal,
        np.zeros(1) if durations is None else _durations(*durations, i, j),
    )
    vector, direction, length, position, duration = (1 - float(np.median(values)) for values in differences)
    return vector, direction, length, position, duration


def similarity(probabilities: Sequence[float] | np.ndarray, fixated: int) -> float:
    """SIM: the sum of minima of a predicted distribution and the one-hot of what was fixated."""
    return float(min(1.0, np.asarray(probabilities)[fixated]))


def nss(probabilities: Sequence[float] | np.ndarray, fixated: int) -> float:
    """NSS: the z-score of the prediction at what was fixated; 0 for a flat one."""
    values = np.asarray(probabilities, float)
    spread = values.std()
    return float((values[fixated] - values.mean()) / spread) if spread > 0 else 0.0


def _padded(points: Sequence[Point]) -> np.ndarray:
    """At least three points."""
    return np.array([*points, *[points[-1]] * max(0, 3 - len(points))], float)


def _alignment(costs: np.ndarray) -> list[tuple[int, int]]:
    """Cheapest way from the first cell to the last by right, down or diagonal steps, paying for each cell entered.

    Dijkstra; of ways that cost the same, the first one found stays.
    """
    height, width = costs.shape
    best, before = {(0, 0): 0.0}, dict[tuple[int, int], tuple[int, int]]()
    queue, done = [(0.0, 0, 0)], set[tuple[int, int]]()
    while queue:
        cost, i, j = heapq.heappop(queue)
        if (i, j) in done:
            continue
        done.add((i, j))
        for cell in ((i, j + 1), (i + 1, j), (i + 1, j + 1)):
            if cell[0] >= height or cell[1] >= width:
                continue
            entered = cost + float(costs[cell])
            if entered < best.get(cell, np.inf):
                best[cell], before[cell] = entered, (i, j)
                heapq.heappush(queue, (entered, *cell))
    way = [(height - 1, width - 1)]
    while way[-1] != (0, 0):
        way.append(before[way[-1]])
    return way[::-1]


def _durations(first: Sequence[float], second: Sequence[float], i: list[int], j: list[int]) -> np.ndarray:
    """Relative differences of the durations of the fixations that the saccades start from."""
    a, b = (_padded([[value] for value in values])[:, 0] for values in (first, second))
    return np.asarray(np.abs(a[i] - b[j]) / np.maximum(np.maximum(a[i], b[j]), 1e-12))
