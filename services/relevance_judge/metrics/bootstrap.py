"""Bootstrap over whole queries: pairs of one query are not independent, so queries are what is drawn again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = ["draw_ratios", "percentile_interval"]

Floats = NDArray[np.float64]
Ratio = Mapping[str, tuple[float, float]]


def draw_ratios(counts: Sequence[Ratio], *, draws: int, seed: int) -> Floats:
    """Ratios of sums [c, draws] of several quantities over the same samples of queries.

    Args:
        counts: Of each quantity, {query: (numerator, denominator)}; a query that is missing counts (0, 0).
        draws: Samples of as many queries as there are.
        seed: Makes it repeatable.

    Returns:
        NaN, for `percentile_interval` only, where a sample's denominator is 0.
    """
    names = sorted({name for one in counts for name in one})
    parts = np.asarray([[one.get(name, (0.0, 0.0)) for name in names] for one in counts], float)
    times = np.random.default_rng(seed).multinomial(len(names), np.full(len(names), 1.0 / max(len(names), 1)), draws)
    sums = np.einsum("dq,cqk->cdk", times.astype(float), parts)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.where(sums[..., 1] > 0, sums[..., 0] / sums[..., 1], np.nan))


def percentile_interval(values: Floats, confidence: float = 0.95) -> tuple[float, float] | None:
    """Percentile interval of bootstrap values; None where all are undefined."""
    known = values[~np.isnan(values)]
    if not known.size:
        return None
    tail = (1.0 - confidence) * 50.0
    low, high = np.percentile(known, (tail, 100.0 - tail))
    return float(low), float(high)
