"""Trust report: a judge against lexical and embedding baselines on a labelled sample, before a batch of it is believed.

Pair order, τ and κ each come with an interval from a bootstrap over queries, and a sentence says whether the judge is
better than what costs nothing. Computes from signals; asks no model.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, Field

from services.relevance_judge.metrics.agreement import GRADES, Qrels, cohen_kappa
from services.relevance_judge.metrics.bootstrap import divide_sums, draw_ratios, percentile_interval
from services.relevance_judge.metrics.calibration import grade_across_queries
from services.relevance_judge.metrics.pair_order import kendall_tau_b, order_counts
from services.relevance_judge.metrics.uncertainty import kappa_interval

MIN_QUERIES = 5
"""Fewer queries with an order to judge give no verdict."""

Signals = Mapping[tuple[str, str], float]
Interval = tuple[float, float] | None
Counts = dict[str, tuple[float, float]]


class RaterRow(BaseModel):
    """A judge or a baseline; null is undefined, intervals are 95 %, from a bootstrap over queries."""

    name: str
    pairs: int = Field(description="Labelled pairs that it has a signal for.")
    pair_order: float | None = Field(description="Share of pairs of a query in people's order; 0.5 is chance.")
    pair_order_interval: Interval
    tau: float | None = Field(description="Kendall's τ-b with the labels, averaged over queries.")
    tau_interval: Interval
    kappa: float | None = Field(description="Of its grades, or of cuts at the label shares of all other queries.")
    kappa_interval: Interval
    lead: float | None = Field(None, description="The judge's pair order less this one's, over the same samples.")
    lead_interval: Interval = None


class TrustReport(BaseModel):
    """Whether the judge is worth believing on texts like these."""

    statement: str = Field(description="The answer in a plain sentence.")
    is_better: bool = Field(description="Better than every baseline, by intervals that exclude 0.")
    queries: int
    judge: RaterRow
    baselines: list[RaterRow]


def build_trust_report(
    name: str,
    signals: Signals,
    reference: Qrels,
    baselines: Mapping[str, Signals],
    *,
    grades: Qrels | None = None,
    draws: int = 2000,
    seed: int = 0,
) -> TrustReport:
    """Compare a judge with baselines on the pairs that are labelled and that all have a signal for.

    Signals are {(qid, docid): signal}; a judge without signals may give its grades. Reference grades are clamped to the
    scale. Without `grades` of its own, the judge's signals are cut at the label shares of all other queries. Intervals
    come from `draws` samples of queries.
    """
    pairs = [pair for pair in reference if pair in signals and all(pair in one for one in baselines.values())]
    truth = np.clip(np.asarray([reference[pair] for pair in pairs], int), GRADES[0], GRADES[-1])
    labels, queries = dict(zip(pairs, truth.tolist(), strict=True)), [qid for qid, _ in pairs]
    raters = [(name, signals), *baselines.items()]  # by place: a judge may have the name of a baseline
    values = [np.asarray([one[pair] for pair in pairs], float) for _, one in raters]
    orders = [order_counts(x, truth, queries) for x in values]
    drawn = draw_ratios(orders, draws=draws, seed=seed)

    def describe(place: int) -> RaterRow:
        taus = _taus(pairs, values[place], truth)
        graded = grades if place == 0 and grades is not None else _grade(pairs, values[place], truth)
        shared = [pair for pair in pairs if pair in graded]
        judged = np.clip(np.asarray([graded[pair] for pair in shared], int), GRADES[0], GRADES[-1])
        return RaterRow(
            name=raters[place][0],
            pairs=len(pairs),
            pair_order=divide_sums(orders[place]),
            pair_order_interval=percentile_interval(drawn[place]),
            tau=divide_sums(taus),
            tau_interval=percentile_interval(draw_ratios([taus], draws=draws, seed=seed)[0]) if taus else None,
            kappa=cohen_kappa([labels[pair] for pair in shared], judged),
            kappa_interval=kappa_interval(labels, graded, draws=draws, seed=seed),
            **({} if place == 0 else _lead(orders[0], orders[place], drawn[0] - drawn[place])),
        )

    judge, *others = map(describe, range(len(raters)))
    is_better, statement = _conclude(judge, others, sum(total > 0 for _, total in orders[0].values()))
    return TrustReport(statement=statement, is_better=is_better, queries=len({*queries}), judge=judge, baselines=others)


def _lead(judge: Counts, other: Counts, drawn: NDArray[np.float64]) -> dict[str, Any]:
    ours, theirs = divide_sums(judge), divide_sums(other)
    if ours is None or theirs is None:
        return {}
    return {"lead": ours - theirs, "lead_interval": percentile_interval(drawn)}


def _grade(
    pairs: Sequence[tuple[str, str]], x: NDArray[np.float64], truth: NDArray[np.int64]
) -> dict[tuple[str, str], int]:
    queries = [qid for qid, _ in pairs]
    if len(set(queries)) < 2:
        return {}
    return dict(zip(pairs, grade_across_queries(x, truth, queries).tolist(), strict=True))


def _taus(pairs: list[tuple[str, str]], x: NDArray[np.float64], truth: NDArray[np.int64]) -> Counts:
    """(τ, 1) of each query whose labels differ; a constant signal says nothing and counts 0."""
    queries = np.asarray([qid for qid, _ in pairs])
    found = {}
    for name in sorted(set(queries.tolist())):
        group = queries == name
        if np.ptp(truth[group]) > 0:
            found[name] = (kendall_tau_b(x[group], truth[group]) or 0.0, 1.0)
    return found


def _conclude(judge: RaterRow, baselines: list[RaterRow], queries: int) -> tuple[bool, str]:
    if judge.pair_order is None or judge.pair_order_interval is None or queries < MIN_QUERIES:
        few = f"Only {queries} labelled queries hold passages of unequal grade; {MIN_QUERIES} are the least."
        return False, f"This sample says nothing about the judge. {few}"
    low, high = judge.pair_order_interval
    own = f"{judge.pair_order:.3f} of the pairs (95 % {low:.3f} to {high:.3f})"
    if low <= 0.5:
        worse = "is worse than chance" if high < 0.5 else "is no better than chance"
        return False, f"Do not use this judge here: it orders {own} as people do, which {worse} (0.500)."
    rivals = [row for row in baselines if row.lead is not None and row.lead_interval is not None]
    if not rivals:
        return False, f"The judge orders {own} as people do; there is no baseline to compare it with."
    best = min(rivals, key=lambda row: row.lead or 0.0)
    near, far = best.lead_interval or (0.0, 0.0)
    against = f"{best.name} orders {best.pair_order or 0.0:.3f}, a lead of {best.lead:+.3f} ({near:+.3f} to {far:+.3f})"
    if all(row.lead_interval is not None and row.lead_interval[0] > 0 for row in rivals):
        return True, f"The judge is better than every baseline: it orders {own} as people do; {against}."
    tied = [row.name for row in rivals if row.lead_interval is not None and row.lead_interval[0] <= 0]
    return False, f"The judge is no better than {' and '.join(tied)}: it orders {own} as people do; {against}."
