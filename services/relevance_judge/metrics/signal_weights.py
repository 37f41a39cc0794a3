"""Weights of an ensemble's signals, fitted on labelled pairs within queries and evaluated on queries left out.

The model is RankNet's (Burges et al., 2005) with a linear scorer: the probability that one passage is better than
another of the same query is the logistic of the weighted difference of their standardised signals. Weights are not
negative, so a judge that orders pairs the wrong way gets none.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fovea.errors import InvalidOption
from services.relevance_judge.metrics.pair_order import number_queries, pair_order
from shared.lazy_module import LazyModule

optimize, special = LazyModule("scipy.optimize"), LazyModule("scipy.special")

Floats = NDArray[np.float64]

MAX_FOLDS = 20


@dataclass(frozen=True)
class SignalWeights:
    """How signals of several judges add up.

    Attributes:
        weights: One per judge, ≥ 0, of sum 1.
        means, spreads: Of each judge's training signals; a signal counts in these standard deviations.
        pair_order: Pair order of the weighted sum, each query scored with weights fitted without it; or None.
        equal: The same of the unweighted sum; `alone` of each judge by itself.
    """

    weights: tuple[float, ...]
    means: tuple[float, ...]
    spreads: tuple[float, ...]
    pair_order: float | None
    equal: float | None
    alone: tuple[float | None, ...]


def fit_signal_weights(signals: Any, grades: Any, queries: Sequence[Any], *, ridge: float = 1.0) -> SignalWeights:
    """Fit weights of signals [n pairs, m judges] by the order of passages within queries, which count alike.

    `ridge` penalises the squared weights before they are scaled to sum 1. Raises InvalidOption for unequal lengths, a
    signal that is not finite or is constant, or no query with two grades.
    """
    x, y, q = np.asarray(signals, float), np.asarray(grades, int), number_queries(queries)
    if x.ndim != 2 or not len(x) == len(y) == len(q) or not np.isfinite(x).all():
        raise InvalidOption("Each pair needs a label, a query, and a finite signal of every judge.")
    means, spreads = x.mean(0), x.std(0)
    if not np.ptp(x, axis=0).all():  # a constant's spread may be 1e-16
        raise InvalidOption("A judge's signal is the same for all pairs, so it can't be weighed.", field="judges")
    scaled = (x - means) / spreads
    weights = _fit(scaled, y, q, ridge)
    return SignalWeights(
        weights=tuple(weights.tolist()),
        means=tuple(means.tolist()),
        spreads=tuple(spreads.tolist()),
        pair_order=pair_order(_score_left_out(scaled, y, q, ridge), y, q),
        equal=pair_order(scaled.sum(1), y, q),
        alone=tuple(pair_order(column, y, q) for column in x.T),
    )


def combine_signals(signals: Any, found: SignalWeights) -> Floats:
    """The weighted sums [n] of signals [n, m]."""
    scaled = (np.asarray(signals, float) - np.asarray(found.means)) / np.asarray(found.spreads)
    return np.asarray(scaled @ np.asarray(found.weights))


def fit_order(x: Floats, y: NDArray[Any], q: NDArray[Any], ridge: float, *, lowest: float | None = 0.0) -> Floats:
    """Weights [m] that minimise the mean logistic loss of each query's pairs, summed over queries, plus the penalty."""
    differences, shares = _differences(x, y, q)
    if not len(differences):
        raise InvalidOption("No query has two passages of unequal grade, so there is no order to learn.", field="qrels")

    def loss(weights: Floats) -> tuple[float, Floats]:
        margin = differences @ weights
        slope = -shares * special.expit(-margin)
        value = float(shares @ np.logaddexp(0.0, -margin)) + 0.5 * ridge * float(weights @ weights)
        return value, differences.T @ slope + ridge * weights

    bounds = [(lowest, None)] * x.shape[1]
    found = optimize.minimize(loss, np.full(x.shape[1], 0.1), jac=True, bounds=bounds, method="L-BFGS-B")
    return np.asarray(found.x)


def _fit(x: Floats, y: NDArray[Any], q: NDArray[Any], ridge: float) -> Floats:
    weights = fit_order(x, y, q, ridge)
    total = float(weights.sum())
    return weights / total if total > 1e-9 else np.full(x.shape[1], 1.0 / x.shape[1])


def _differences(x: Floats, y: NDArray[Any], q: NDArray[Any]) -> tuple[Floats, Floats]:
    """Differences [p, m] of the better and the worse passage of each pair, and the pair's share of its query."""
    rows: list[Floats] = [np.zeros((0, x.shape[1]))]
    shares: list[Floats] = [np.zeros(0)]
    for name in sorted(set(q.tolist())):
        group, labels = x[q == name], y[q == name]
        better, worse = np.nonzero(np.subtract.outer(labels, labels) > 0)
        if len(better):
            rows.append(group[better] - group[worse])
            shares.append(np.full(len(better), 1.0 / len(better)))
    return np.concatenate(rows), np.concatenate(shares)


def _score_left_out(x: Floats, y: NDArray[Any], q: NDArray[Any], ridge: float) -> Floats:
    """Scores [n] by weights that were fitted without the queries of the same fold."""
    names = sorted(set(q.tolist()))
    folds = {name: place % min(MAX_FOLDS, len(names)) for place, name in enumerate(names)}
    fold = np.asarray([folds[name] for name in q.tolist()])
    scores = np.zeros(len(x))
    for number in range(max(folds.values()) + 1):
        rest = fold != number
        known = len(_differences(x[rest], y[rest], q[rest])[0]) > 0
        weights = _fit(x[rest], y[rest], q[rest], ridge) if known else np.full(x.shape[1], 1.0 / x.shape[1])
        scores[~rest] = x[~rest] @ weights
    return scores
