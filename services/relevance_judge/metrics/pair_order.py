"""How alike two orders are: pairs of passages that a signal ranks as their labels do, and rank correlations."""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from services.relevance_judge.metrics.bootstrap import divide_sums
from shared.lazy_module import LazyModule

stats = LazyModule("scipy.stats")


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


def kendall_tau_b(x: Any, y: Any) -> float | None:
    """Kendall's τ-b with ties; None for fewer than two values or a constant side."""
    return _correlation(stats.kendalltau, x, y)


def spearman_rho(x: Any, y: Any) -> float | None:
    """Spearman's ρ over average ranks; None for fewer than two values or a constant side."""
    return _correlation(stats.spearmanr, x, y)


def _correlation(rule: Callable[..., Any], x: Any, y: Any) -> float | None:
    first, second = np.asarray(x, float), np.asarray(y, float)
    if first.size < 2 or np.ptp(first) == 0 or np.ptp(second) == 0:
        return None
    return float(rule(first, second).statistic)
