"""Confidence interval of kappa: a bootstrap over whole queries, since pairs of one query are not independent."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from services.relevance_judge.metrics.agreement import GRADES, Qrels, confusion
from services.relevance_judge.metrics.bootstrap import percentile_interval

MIN_QUERIES = 2


def kappa_interval(reference: Qrels, judge: Qrels, *, draws: int = 2000, seed: int = 0) -> tuple[float, float] | None:
    """Percentile interval (95 %) of the pooled unweighted kappa when queries are drawn again; labels are clamped.

    None for fewer than two queries or where kappa is undefined in every sample.
    """
    tables = np.stack([*_tables(reference, judge).values()] or [np.zeros((4, 4), np.int64)])
    if len(tables) < MIN_QUERIES:
        return None
    rng, flat = np.random.default_rng(seed), tables.reshape(len(tables), -1)
    drawn = [np.bincount(rng.integers(0, len(flat), len(flat)), minlength=len(flat)) @ flat for _ in range(draws)]
    return percentile_interval(_kappas(np.reshape(drawn, (-1, 4, 4)).astype(np.float64)))


def _tables(reference: Qrels, judge: Qrels) -> Mapping[str, NDArray[np.int64]]:
    labels: dict[str, tuple[list[int], list[int]]] = {}
    for pair, grade in reference.items():
        if pair in judge:
            first, second = labels.setdefault(pair[0], ([], []))
            first.append(min(max(grade, GRADES[0]), GRADES[-1]))
            second.append(min(max(judge[pair], GRADES[0]), GRADES[-1]))
    return {query: confusion(*sides) for query, sides in labels.items()}


def _kappas(tables: NDArray[np.float64]) -> NDArray[np.float64]:
    """Kappa of many tables [d, 4, 4]; NaN, inside this file only, where undefined."""
    total = tables.sum((1, 2))
    agreed = np.trace(tables, axis1=1, axis2=2) / total
    expected = (tables.sum(1) * tables.sum(2)).sum(1) / total**2
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(expected < 1, (agreed - expected) / (1 - expected), np.nan)
