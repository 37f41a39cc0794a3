"""Pair order: how often a signal ranks two passages of one query as their labels do."""

from __future__ import annotations

from typing import Any

import numpy as np

from services.relevance_judge.metrics.bootstrap import divide_sums

__all__ = ["order_counts", "pair_order"]


def pair_order(signals: Any, grades: Any, queries: Any) -> float | None:
    """Share of pairs of unequal grade within a query that the signal orders right; ties count one half.

    0.5 is chance. None where no query holds two grades.
    """
    return divide_sums(order_counts(signals, grades, queries))


def order_counts(signals: Any, grades: Any, queries: Any) -> dict[str, tuple[float, float]]:
    """Per query, how many pairs of unequal grade are ordered right, and how many there are."""
    x, y, q = np.asarray(signals, float), np.asarray(grades, int), np.asarray([str(query) for query in queries])
    found = {}
    for name in sorted(set(q.tolist())):
        higher = np.subtract.outer(y[q == name], y[q == name]) > 0
        ahead = np.subtract.outer(x[q == name], x[q == name])[higher]
        found[name] = (float((ahead > 0).sum() + 0.5 * (ahead == 0).sum()), float(higher.sum()))
    return found
