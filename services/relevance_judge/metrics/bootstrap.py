"""Bootstrap over whole queries: pairs of one query are not independent, so queries are what is drawn again."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ratio = Mapping[str, tuple[float, float]]


def divide_sums(counts: Ratio) -> float | None:
    """The ratio of sums over queries, {query: (numerator, denominator)}; None where the denominator is 0."""
    total = sum(whole for _, whole in counts.values())
    return sum(part for part, _ in counts.values()) / total if total else None


def draw_ratios(counts: Sequence[Ratio], *, draws: int, seed: int) -> Floats:
    """Ratios of sums [c, draws] of several quantities over the same samples of as many queries as there are.

    Counts are {query: (numerator, denominator)}; a query that is missing counts (0, 0). A ratio is NaN, for
    `percentile_interval` only, where a sample's denominator is 0.
    """
    rng, names = np.random.default_rng(seed), sorted({name for one in counts for name in one})
    parts = np.asarray([[one.get(name, (0.0, 0.0)) for name in names] for one in counts], float)
    samples = (rng.multinomial(len(names), np.full(len(names), 1.0 / len(names))).astype(float) for _ in range(draws))
    sums = np.stack([np.einsum("q,cqk->ck", times, parts) for times in samples], axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.where(sums[..., 1] > 0, sums[..., 0] / sums[..., 1], np.nan))


def percentile_interval(values: Floats, confidence: float = 0.95) -> tuple[float, float] | None:
    """Percentile interval of bootstrap values; None where all are undefined."""
    known, tail = values[~np.isnan(values)], (1.0 - confidence) * 50.0
    if not known.size:
        return None
    low, high = np.percentile(known, (tail, 100.0 - tail))
    return float(low), float(high)
