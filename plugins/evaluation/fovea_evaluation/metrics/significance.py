"""Paired significance of systems over queries: permutation tests, and corrections for many pairs.

After Smucker, Allan & Carterette (2007) on randomisation tests, and Carterette (2012) on comparing many systems.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, Field

from fovea_evaluation.metrics.rankings import Run, check_queries, evaluate
from services.relevance_judge.metrics.agreement import Qrels
from services.relevance_judge.metrics.bootstrap import percentile_interval

Floats = NDArray[np.float64]
Correction = Literal["none", "bonferroni", "holm", "fdr", "max-t"]

EXACT_QUERIES = 14
"""Up to so many queries all 2ⁿ signs are tried instead of a sample."""


class PairTest(BaseModel):
    """Two systems over the same queries."""

    first: str
    second: str
    difference: float = Field(description="Mean of first − second.")
    interval: tuple[float, float] = Field(description="From a paired bootstrap; not corrected for many comparisons.")
    p: float = Field(description="Two-sided, of the permutation test.")
    p_corrected: float = Field(description="Corrected for the number of pairs compared.")
    wins: int = Field(description="Queries on which the first is better.")
    losses: int
    ties: int


def tabulate_scores(
    runs: Mapping[str, Run], qrels: Qrels, *, measure: str, relevance_level: int = 1
) -> tuple[list[str], list[str], Floats]:
    """Systems, queries, and scores [systems, queries]; a labelled query that a run lacks counts 0.

    Raises InvalidOption: a run lacks all of them.
    """
    check_queries(runs, qrels)
    queries = list(dict.fromkeys(query for query, _ in qrels))
    rows = []
    for run in runs.values():
        found = evaluate(run, qrels, measures=[measure], relevance_level=relevance_level)
        rows.append([found[query][measure] if query in found else 0.0 for query in queries])
    return list(runs), queries, np.asarray(rows, float).reshape(len(rows), len(queries))


def permutation_p(differences: Any, *, draws: int = 10_000, seed: int = 0) -> float:
    """Two-sided p of the mean of paired differences [n] under exchange of the two systems in any query.

    Exact up to `EXACT_QUERIES` queries; else (1 + at least as extreme) / (1 + draws), which is never 0.
    """
    d = np.asarray(differences, float)
    observed = abs(d.sum()) - 1e-12
    if len(d) <= EXACT_QUERIES:
        signs = np.asarray(list(itertools.product((1.0, -1.0), repeat=len(d)))).reshape(-1, len(d))
        return float((np.abs(signs @ d) >= observed).mean())
    hits = sum(int((np.abs(signs @ d) >= observed).sum()) for signs in _draw_signs(len(d), draws, seed))
    return (1 + hits) / (1 + draws)


def mean_interval(values: Any, *, confidence: float = 0.95, draws: int = 10_000, seed: int = 0) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean of values [n]; NaN where the values are."""
    x, source = np.asarray(values, float), np.random.default_rng(seed)
    sizes = split_draws(draws, len(x))
    means = np.concatenate([x[source.integers(0, len(x), (size, len(x)))].mean(1) for size in sizes])
    return percentile_interval(means, confidence) or (np.nan, np.nan)


def split_draws(draws: int, count: int, at_once: int = 4_000_000) -> list[int]:
    """Sizes of blocks of draws of `count` numbers each: a block has a few million numbers, and at least one draw."""
    step = max(1, at_once // max(count, 1))
    return [min(step, draws - begin) for begin in range(0, draws, step)]


def correct_p_values(p: Sequence[float], how: Correction) -> list[float]:
    """Correct p-values for their number: Bonferroni, Holm (1979), or Benjamini & Hochberg's false discovery rate."""
    values = np.asarray(p, float)
    count = len(values)
    order = np.argsort(values, kind="stable")
    found = np.empty(count)
    if how == "bonferroni":
        found = values * count
    elif how == "holm":
        found[order] = np.maximum.accumulate(values[order] * (count - np.arange(count)))
    elif how == "fdr":
        steps = values[order] * count / (np.arange(count) + 1)
        found[order] = np.minimum.accumulate(steps[::-1])[::-1]
    else:
        found = values
    return np.minimum(found, 1.0).tolist()  # type: ignore[no-any-return]  # numpy doesn't say what a list holds


def compare_systems(
    names: Sequence[str],
    scores: Floats,
    *,
    baseline: str | None = None,
    correction: Correction = "holm",
    confidence: float = 0.95,
    draws: int = 10_000,
    seed: int = 0,
) -> list[PairTest]:
    """Test all pairs of systems by scores [systems, queries], the better first, or each against a baseline, the second.

    The correction `max-t` compares with the largest difference among all systems under permutation (Carterette's
    randomised form of Tukey's test); the others correct the single p-values. Intervals are not corrected. There are
    `draws` permutations and bootstrap samples.
    """
    means = scores.mean(1)
    order = sorted(range(len(names)), key=lambda place: -means[place])
    if baseline is None:
        pairs = list(itertools.combinations(order, 2))
    else:
        pairs = [(place, names.index(baseline)) for place in order if names[place] != baseline]
    gaps = [scores[a] - scores[b] for a, b in pairs]
    p = [permutation_p(gap, draws=draws, seed=seed) for gap in gaps]
    corrected = _max_range_p(scores, gaps, draws, seed) if correction == "max-t" else correct_p_values(p, correction)
    return [
        PairTest(
            first=names[a],
            second=names[b],
            difference=float(gap.mean()),
            interval=mean_interval(gap, confidence=confidence, draws=draws, seed=seed),
            p=single,
            p_corrected=family,
            wins=int((gap > 0).sum()),
            losses=int((gap < 0).sum()),
            ties=int((gap == 0).sum()),
        )
        for (a, b), gap, single, family in zip(pairs, gaps, p, corrected, strict=True)
    ]


def _draw_signs(count: int, draws: int, seed: int) -> Iterator[Floats]:
    """A few million signs at a time: all of them together fill the memory where there are many queries."""
    source = np.random.default_rng(seed)
    for size in split_draws(draws, count):
        yield source.choice((1.0, -1.0), (size, count))


def _max_range_p(scores: Floats, gaps: Sequence[Floats], draws: int, seed: int) -> list[float]:
    """For each gap, how often systems shuffled within each query differ as much by their extremes."""
    source = np.random.default_rng(seed)
    columns = scores.T
    widest = np.asarray([np.ptp(source.permuted(columns, axis=1).mean(0)) for _ in range(draws)])
    return [float((1 + (widest >= abs(gap.mean()) - 1e-12).sum()) / (1 + draws)) for gap in gaps]
