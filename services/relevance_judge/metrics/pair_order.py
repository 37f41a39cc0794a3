"""Pair order: how often a signal ranks two passages of one query as their labels do."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from services.relevance_judge.metrics.bootstrap import divide_sums


def pair_order(signals: Any, grades: Any, queries: Any) -> float | None:
    """Share of pairs of unequal grade within a query that the signal orders right; ties count one half.

    0.5 is chance. None where no query holds two grades.
    """
    return divide_sums(order_counts(signals, grades, queries))


def order_counts(signals: Any, grades: Any, queries: Any) -> dict[str, tuple[float, float]]:
    """Per query, how many pairs of unequal grade are ordered right, and how many there are."""
    x, y = np.asarray(signals, float), np.asarray(grades, int)
    rows: dict[str, list[int]] = {}
    for place, query in enumerate(queries):
        rows.setdefault(str(query), []).append(place)
    return {name: _count_order(x[places], y[places]) for name, places in sorted(rows.items())}


def number_queries(queries: Iterable[Any]) -> NDArray[np.int64]:
    """A number for each query, in the order of names: an array of names would be as wide as the longest of them."""
    names = [str(query) for query in queries]
    known = {name: number for number, name in enumerate(sorted(set(names)))}
    return np.asarray([known[name] for name in names], np.int64)


def _count_order(x: NDArray[np.float64], y: NDArray[Any]) -> tuple[float, float]:
    """Of one query: pairs ordered right and pairs in all, without a table of all pairs."""
    right = total = 0.0
    for grade in np.unique(y)[1:]:
        lower, own = np.sort(x[y < grade]), x[y == grade]
        right += 0.5 * float(lower.searchsorted(own).sum() + lower.searchsorted(own, "right").sum())
        total += lower.size * own.size
    return right, total
