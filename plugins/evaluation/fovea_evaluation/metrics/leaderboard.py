"""Leaderboard of judges: agreement with its interval, and next to it how alike they rank systems.

Over the published judges kappa and tau are unrelated, so a row always has both columns; a row without an interval is
not shown, because nobody could tell it from its neighbours.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Literal

from pydantic import BaseModel, Field

from fovea_evaluation.metrics import rankings
from services.relevance_judge.metrics.agreement import Qrels, agree
from services.relevance_judge.metrics.pair_order import spearman_rho
from services.relevance_judge.metrics.uncertainty import kappa_interval
from services.relevance_judge.parsing.label_formats import LabelSet
from services.relevance_judge.parsing.trec import Runs

Sort = Literal["kappa", "alpha", "tau_b", "rho", "mae", "invalid_share", "cost", "seconds", "judge"]

ASCENDING = frozenset({"mae", "invalid_share", "cost", "seconds", "judge"})


class LeaderboardEntry(BaseModel):
    """A judge to rank: its name, its template where that is known, and its labels."""

    judge: str = Field(min_length=1, max_length=120)
    template: str | None = None
    labels: LabelSet


class LeaderboardRow(rankings.Comparison):
    """One judge; null is undefined or not stated."""

    judge: str
    template: str | None
    pairs: int
    kappa: float | None
    kappa_interval: tuple[float, float]
    alpha: float | None
    kappa_quadratic: float | None
    kappa_by_cut: dict[str, float | None]
    alpha_by_cut: dict[str, float | None]
    bias: float | None
    mae: float | None
    invalid_share: float
    mean: float | None = Field(description="Of its labels.")
    counts: list[int]
    tokens: int | None
    cost: float | None
    seconds: float | None


class ExcludedJudge(BaseModel):
    """A judge that is not shown, and why."""

    judge: str
    reason: str


class Leaderboard(BaseModel):
    """The rows, sorted; and how kappa and tau go together over them."""

    name: str | None = None
    version: int | None = None
    queries: int
    pairs: int = Field(description="Of the reference.")
    systems: int = Field(description="Ranked for tau and rho.")
    measure: str
    sort: Sort
    rows: list[LeaderboardRow]
    left_out: list[ExcludedJudge]
    kappa_with_tau: float | None = Field(description="Spearman's rho of the columns kappa and tau_b, over the rows.")

    def sort_by(self, sort: Sort) -> Leaderboard:
        """The same table sorted by another column."""
        return self.model_copy(update={"rows": _sorted(self.rows, sort), "sort": sort})


def build_leaderboard(
    reference: Qrels,
    entries: Sequence[LeaderboardEntry],
    runs: Runs,
    *,
    measure: str = "ndcg_cut_10",
    relevance_level: int = 1,
    draws: int = 2000,
    seed: int = 0,
    sort: Sort = "kappa",
) -> Leaderboard:
    """Measure each judge against the reference, {(qid, docid): grade}; the best in the column `sort` comes first.

    `runs` are the systems to rank; without any tau and rho are null. `relevance_level` is the lowest grade that counts
    as relevant. Intervals come from `draws` samples of queries. Raises InvalidOption for an unknown measure.
    """
    score = partial(rankings.system_scores, runs, measure=measure, relevance_level=relevance_level, missing="zero")
    truth = score(reference)
    rows, left_out = [], []
    for entry in entries:
        interval = kappa_interval(reference, entry.labels.labels, draws=draws, seed=seed)
        if interval is None:
            reason = "Kappa has no interval: fewer than two queries, or one and the same grade throughout."
            if entry.labels.uncalibrated and not entry.labels.labels:
                reason = f"It has signals ({entry.labels.uncalibrated:,} pairs) and no grade: fit cuts of the judge."
            left_out.append(ExcludedJudge(judge=entry.judge, reason=reason))
            continue
        rows.append(_row(reference, entry, interval, rankings.compare(truth, score(entry.labels.labels))))
    both = [(row.kappa, row.tau_b) for row in rows if row.kappa is not None and row.tau_b is not None]
    return Leaderboard(
        queries=len({qid for qid, _ in reference}),
        pairs=len(reference),
        systems=len(truth),
        measure=measure,
        sort=sort,
        rows=_sorted(rows, sort),
        left_out=left_out,
        kappa_with_tau=spearman_rho(*zip(*both, strict=True)) if both else None,
    )


def _row(
    reference: Qrels, entry: LeaderboardEntry, interval: tuple[float, float], compared: rankings.Comparison
) -> LeaderboardRow:
    found, labels = agree(reference, entry.labels.labels), entry.labels
    judged = max(sum(pair in reference for pair in {*labels.labels, *labels.invalid}), 1)
    same = "pairs kappa alpha kappa_quadratic kappa_by_cut alpha_by_cut bias mae counts"
    return LeaderboardRow(
        judge=entry.judge,
        template=entry.template,
        **{name: getattr(found, name) for name in same.split()},
        **vars(compared),
        kappa_interval=interval,
        invalid_share=sum(pair in reference for pair in labels.invalid) / judged,
        mean=_mean(found.counts),
        tokens=labels.tokens or None,
        cost=labels.cost,
        seconds=labels.seconds or None,
    )


def _mean(counts: Sequence[int]) -> float | None:
    total = sum(counts)
    return sum(grade * count for grade, count in enumerate(counts)) / total if total else None


def _sorted(rows: list[LeaderboardRow], sort: Sort) -> list[LeaderboardRow]:
    """Best first; what has no value comes last."""
    known = [row for row in rows if getattr(row, sort) is not None]
    known.sort(key=lambda row: getattr(row, sort), reverse=sort not in ASCENDING)
    return [*known, *(row for row in rows if getattr(row, sort) is None)]
