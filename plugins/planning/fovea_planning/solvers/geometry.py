"""Hulls and triangulations of points in the plane: Qhull's answers in one canonical form, and what checks others.

Knows geometry; knows no network. Points are (n, 2); indices are those of the input.
"""

from collections.abc import Sequence

import numpy as np
from scipy.spatial import ConvexHull, Delaunay


def crosses(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """Cross product of b - a and c - a over the last axis: positive where c is left of the line from a to b."""
    u, v = b - a, c - a
    return np.asarray(u[..., 0] * v[..., 1] - u[..., 1] * v[..., 0])


def hull(points: np.ndarray) -> list[int]:
    """Vertices of the convex hull, counter-clockwise, from the lowest index; points on an edge are not vertices.

    Of points at one place the first is meant.
    """
    return canonical_hull(_first_there(points)[ConvexHull(points).vertices].tolist())


def _first_there(points: np.ndarray) -> np.ndarray:
    """For each point (n, 2) the lowest index at its place (n,): which of them Qhull names is chance."""
    _, first, place = np.unique(points, axis=0, return_index=True, return_inverse=True)
    return np.asarray(first[place.reshape(-1)])


def canonical_hull(order: Sequence[int]) -> list[int]:
    """A polygon, turned so that its lowest index comes first."""
    first = list(order).index(min(order))
    return [*order[first:], *order[:first]]


def canonical_tour(order: Sequence[int]) -> list[int]:
    """A tour from point 0, in the direction in which the second index is below the last."""
    turned = canonical_hull(order)
    return turned if len(turned) < 3 or turned[1] < turned[-1] else [turned[0], *turned[:0:-1]]


def area(points: np.ndarray, order: Sequence[int] | np.ndarray) -> float:
    """Signed area of a polygon: positive when it runs counter-clockwise."""
    corners = points[np.asarray(order, int)]
    x, y = (corners - corners[:1]).T  # near the origin: far from it small polygons drown in rounding
    return float((x * np.roll(y, -1) - np.roll(x, -1) * y).sum() / 2)


def delaunay(points: np.ndarray) -> list[tuple[int, int, int]]:
    """Triangles whose circles hold no other point, each ascending, ordered by their incentres (x, then y).

    Of points at one place the first is meant.
    """
    corners = np.sort(_first_there(points)[Delaunay(points).simplices], axis=1)
    a, b, c = (points[corners[:, k]] for k in range(3))
    sides = [np.linalg.norm(p - q, axis=1) for p, q in ((b, c), (a, c), (a, b))]
    weighed = sum(side[:, None] * corner for side, corner in zip(sides, (a, b, c), strict=True))
    x, y = (weighed / sum(sides)[:, None]).T
    return [(int(i), int(j), int(k)) for i, j, k in corners[np.lexsort((y, x))]]


def polygon_is_valid(points: np.ndarray, order: Sequence[int]) -> bool:
    """Whether a polygon of three or more corners visits no point twice and does not cross itself."""
    if len(order) < 3 or len(set(order)) < len(order):
        return False
    corners = points[np.asarray(order, int)]
    edges = [(corners[i - 1], corners[i]) for i in range(len(corners))]
    return not any(_meet(*edges[i], *edges[j]) for i in range(len(edges)) for j in range(i + 2, len(edges) - (i == 0)))


def _meet(a: np.ndarray, b: np.ndarray, c: np.ndarray, d: np.ndarray) -> bool:
    return bool(crosses(a, b, c) * crosses(a, b, d) < 0 and crosses(c, d, a) * crosses(c, d, b) < 0)


def hull_successors(points: np.ndarray) -> np.ndarray:
    """For many instances (b, n, 2) at once: which point follows each on the hull (b, n), counter-clockwise; -1 inside.

    An edge belongs to the hull when all points are on its left: for random points, where no three are on a line.
    """
    turn = crosses(points[:, :, None, None], points[:, None, :, None], points[:, None, None, :])
    edge = (turn >= 0).all(3) & ~np.eye(points.shape[1], dtype=bool)
    return np.where(edge.any(2), edge.argmax(2), -1)
