"""Good tours in a given time: nearest neighbour, then 2-opt and Or-opt, then kicks until the time is up.

Knows points and moves; proves nothing. Moves look at near points only, and only where something changed.
"""

import time
from collections.abc import Sequence
from math import hypot

import numpy as np
from scipy.spatial import KDTree

_NEAR = 10
_EPS = 1e-12


def heuristic_tour(points: np.ndarray, deadline: float, seed: int = 0, first: Sequence[int] | None = None) -> list[int]:
    """A good closed tour over points (n, 2): `first`, or that of the nearest neighbours, improved by kicks.

    The deadline is a `time.monotonic()` instant; the seed decides the kicks.
    """
    search = _Search(points, list(first) if first is not None else _nearest(points))
    search.settle(range(len(points)), deadline)
    rng = np.random.default_rng(seed)
    while len(points) >= 8 and time.monotonic() < deadline:
        search.kick(rng, deadline)
    return search.tour


def improve_tour(points: np.ndarray, tour: Sequence[int], deadline: float = float("inf")) -> list[int]:
    """A tour after 2-opt and Or-opt, never longer than it was."""
    search = _Search(points, list(tour))
    search.settle(range(len(points)), deadline)
    return search.tour


def _nearest(points: np.ndarray) -> list[int]:
    """From the first point always to the nearest that is left."""
    left, tour = np.ones(len(points), bool), [0]
    left[0] = False
    for _ in range(len(points) - 1):
        far = np.where(left, ((points - points[tour[-1]]) ** 2).sum(1), np.inf)
        tour.append(int(far.argmin()))
        left[tour[-1]] = False
    return tour


class _Search:
    """A tour, where each point stands in it, and what is near each point."""

    def __init__(self, points: np.ndarray, tour: list[int]) -> None:
        n = len(points)
        points = points - points.min(0)
        points = points / (points.max() or 1.0)  # rounding then stays far below _EPS, so every move really gains
        self.x, self.y = points[:, 0].tolist(), points[:, 1].tolist()
        _, near = KDTree(points).query(points, k=min(_NEAR + 1, n))
        rows = np.asarray(near).reshape(n, -1).tolist()
        self.near = [[other for other in row if other != point] for point, row in enumerate(rows)]
        self.tour = tour
        self.position = [0] * n
        self._number()

    def far(self, a: int, b: int) -> float:
        """Distance of two points."""
        return hypot(self.x[a] - self.x[b], self.y[a] - self.y[b])

    def settle(self, around: Sequence[int] | range, deadline: float) -> float:
        """Improve until nothing helps around these points and whatever changes; return what was gained."""
        waiting, gained = dict.fromkeys(around), 0.0
        while waiting and time.monotonic() < deadline:
            point, _ = waiting.popitem()
            while (found := self._two_opt(point) or self._or_opt(point)) is not None:
                gain, touched = found
                gained += gain
                waiting |= dict.fromkeys(touched)
        return gained

    def kick(self, rng: np.random.Generator, deadline: float) -> None:
        """Exchange two neighbouring stretches, settle, and keep it if the tour is not longer."""
        n, before = len(self.tour), list(self.tour)
        length = min(n, 50)
        start = int(rng.integers(n))
        turned = self.tour[start:] + self.tour[:start]
        i, j, k = sorted(int(c) for c in rng.choice(np.arange(1, length), 3, replace=False))
        ends = [turned[c % n] for c in (i - 1, i, j - 1, j, k - 1, k)]
        cost = sum(self.far(turned[c - 1], turned[c % n]) for c in (i, j, k))
        self.tour = turned[:i] + turned[j:k] + turned[i:j] + turned[k:]
        a, b = i + (k - j), k
        cost -= sum(self.far(self.tour[c - 1], self.tour[c % n]) for c in (i, a, b))
        self._number()
        if self.settle(ends, deadline) + cost < -_EPS:
            self.tour = before
            self._number()

    def _number(self) -> None:
        for index, point in enumerate(self.tour):
            self.position[point] = index

    def _two_opt(self, a: int) -> tuple[float, list[int]] | None:
        """Replace an edge at `a` and another by two shorter ones, where that gains."""
        tour, position, n = self.tour, self.position, len(self.tour)
        for way in (1, -1):
            b = tour[(position[a] + way) % n]
            old = self.far(a, b)
            for c in self.near[a]:
                gain = old - self.far(a, c)
                if gain <= _EPS:
                    break
                d = tour[(position[c] + way) % n]
                gain += self.far(c, d) - self.far(b, d)
                if gain > _EPS and d != a and c != b:
                    self._reverse(*((b, c) if way == 1 else (a, d)))
                    return gain, [a, b, c, d]
        return None

    def _reverse(self, first: int, last: int) -> None:
        """Turn round the stretch from one point to another, or the rest of the tour where that is shorter."""
        tour, n = self.tour, len(self.tour)
        i, j = self.position[first], self.position[last]
        inside = (j - i) % n + 1
        if 2 * inside > n:
            i, j, inside = (j + 1) % n, (i - 1) % n, n - inside
        for _ in range(inside // 2):
            tour[i], tour[j] = tour[j], tour[i]
            self.position[tour[i]], self.position[tour[j]] = i, j
            i, j = (i + 1) % n, (j - 1) % n

    def _or_opt(self, a: int) -> tuple[float, list[int]] | None:
        """Move a stretch of up to three points that begins or ends at `a` next to something near, where that gains."""
        n = len(self.tour)
        for count in range(1, min(3, n - 3) + 1):
            for way in (1, -1):
                stretch = [self.tour[(self.position[a] + way * k) % n] for k in range(count)]
                before = self.tour[(self.position[a] - way) % n]
                after = self.tour[(self.position[stretch[-1]] + way) % n]
                saved = self.far(before, a) + self.far(stretch[-1], after) - self.far(before, after)
                if saved > _EPS and (found := self._insertion(stretch, saved)) is not None:
                    gain, new = found
                    self._move(stretch, *new)
                    return gain, [before, after, *stretch, *new]
        return None

    def _insertion(self, stretch: list[int], saved: float) -> tuple[float, tuple[int, int]] | None:
        """Where a stretch gains: between c, next to its first point, and d, next to its last."""
        a, last, n = stretch[0], stretch[-1], len(self.tour)
        for c in self.near[a]:
            if saved - self.far(a, c) <= _EPS:
                return None
            if c in stretch:
                continue
            for way in (1, -1):
                d = self.tour[(self.position[c] + way) % n]
                gain = saved - self.far(a, c) - self.far(last, d) + self.far(c, d)
                if gain > _EPS and d not in stretch:
                    return gain, (c, d)
        return None

    def _move(self, stretch: list[int], c: int, d: int) -> None:
        """Take the stretch out and put it between two neighbours."""
        rest = [point for point in self.tour if point not in stretch]
        at = rest.index(c)
        if rest[(at + 1) % len(rest)] == d:
            self.tour = [*rest[: at + 1], *stretch, *rest[at + 1 :]]
        else:
            self.tour = [*rest[:at], *reversed(stretch), *rest[at:]]
        self._number()
