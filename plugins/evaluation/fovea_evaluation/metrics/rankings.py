"""Rankings of systems under labels, and how alike two rankings are. Measures have trec_eval's semantics.

A run is sorted by score as float32, descending, ties by passage id descending; the rank column is ignored; what nobody
judged gains nothing and is not relevant, at whatever level.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel

from fovea.errors import InvalidOption
from services.relevance_judge.metrics.agreement import Qrels
from services.relevance_judge.metrics.pair_order import kendall_tau_b, spearman_rho
from services.relevance_judge.parsing.trec import order_passages

Missing = Literal["skip", "zero"]
Run = Mapping[str, Mapping[str, float]]


def evaluate(
    run: Run, qrels: Qrels, *, measures: Iterable[str] = ("ndcg_cut_10",), relevance_level: int = 1
) -> dict[str, dict[str, float]]:
    """Measures of one run {qid: {docid: score}} per query: {qid: {measure: value}}, for queries in both run and labels.

    Measures are `ndcg`, `ndcg_cut_k`, `map`, `P_k`, `recip_rank` and `recall_k`; others raise InvalidOption. Grades
    from `relevance_level` on count as relevant (nDCG uses the grades themselves).
    """
    known = {name: find_measure(name) for name in measures}
    judged: dict[str, dict[str, int]] = {}
    for (query, passage), grade in qrels.items():
        judged.setdefault(query, {})[passage] = grade
    return {
        query: {name: rule(_ranked(run[query], labels), labels, relevance_level) for name, rule in known.items()}
        for query, labels in judged.items()
        if query in run
    }


def system_scores(
    runs: Mapping[str, Run],
    qrels: Qrels,
    *,
    measure: str = "ndcg_cut_10",
    relevance_level: int = 1,
    missing: Missing = "skip",
) -> dict[str, float]:
    """Mean over queries of one measure per system: {tag: mean}; none where no query counts.

    Labelled queries that a run lacks are left out (`skip`, as trec_eval does) or count 0 (`zero`, as `trec_eval -c`);
    see `evaluate`.
    """
    scores: dict[str, float] = {}
    labelled = len({query for query, _ in qrels})
    for tag, run in runs.items():
        rows = evaluate(run, qrels, measures=[measure], relevance_level=relevance_level)
        if count := labelled if missing == "zero" else len(rows):
            mean = math.fsum(row[measure] for row in rows.values()) / count
            scores[tag] = round(mean, 12)  # equal means stay tied: 0.2 + 0.4 is not 0.6 + 0
    return scores


def check_queries(runs: Mapping[str, Run], qrels: Qrels) -> None:
    """Refuse a run that has none of the labelled queries, whose ids are others then: InvalidOption."""
    labelled = dict.fromkeys(query for query, _ in qrels)
    for tag, run in runs.items():
        if labelled and not labelled.keys() & run.keys():
            detail = (
                f"The run {tag} has no labelled query: it has {next(iter(run))}, and {next(iter(labelled))} is one."
            )
            raise InvalidOption(detail, hint="Compare the ids of runs and labels.", field="runs")


Rule = Callable[[Sequence[int], Mapping[str, int], int], float]


def find_measure(name: str) -> Rule:
    """Find the rule of a measure; `InvalidOption` for one that is not known."""
    stem, _, cut = name.rpartition("_")
    if name in {"ndcg", "map", "recip_rank"}:
        return {"ndcg": _ndcg(None), "map": _average_precision, "recip_rank": _reciprocal_rank}[name]
    if stem in {"ndcg_cut", "P", "recall"} and cut.isdecimal() and len(cut) < 10 and int(cut) > 0:
        return {"ndcg_cut": _ndcg, "P": _precision, "recall": _recall}[stem](int(cut))
    detail = f"There is no measure {name!r}; known are ndcg, ndcg_cut_k, map, P_k, recip_rank, recall_k."
    raise InvalidOption(detail, field="measure")


def _ranked(scores: Mapping[str, float], labels: Mapping[str, int]) -> list[int]:
    return [labels.get(passage, -1) for passage in order_passages(scores)]


def _gain(grades: Iterable[int]) -> float:
    return math.fsum(max(grade, 0) / math.log2(rank + 2) for rank, grade in enumerate(grades))


def _ndcg(cut: int | None) -> Rule:
    def rule(grades: Sequence[int], labels: Mapping[str, int], _level: int) -> float:
        ideal = _gain(sorted(labels.values(), reverse=True)[:cut])
        return _gain(grades[:cut]) / ideal if ideal else 0.0

    return rule


def _relevant(labels: Mapping[str, int], level: int) -> int:
    return sum(grade >= level for grade in labels.values())


def _average_precision(grades: Sequence[int], labels: Mapping[str, int], level: int) -> float:
    hits = [rank for rank, grade in enumerate(grades, 1) if grade >= level]
    total = _relevant(labels, level)
    return math.fsum(found / rank for found, rank in enumerate(hits, 1)) / total if total else 0.0


def _reciprocal_rank(grades: Sequence[int], _labels: Mapping[str, int], level: int) -> float:
    return next((1.0 / rank for rank, grade in enumerate(grades, 1) if grade >= level), 0.0)


def _precision(cut: int) -> Rule:
    return lambda grades, _labels, level: sum(grade >= level for grade in grades[:cut]) / cut


def _recall(cut: int) -> Rule:
    def rule(grades: Sequence[int], labels: Mapping[str, int], level: int) -> float:
        total = _relevant(labels, level)
        return sum(grade >= level for grade in grades[:cut]) / total if total else 0.0

    return rule


def tau_ap(truth: Any, estimate: Any) -> float | None:
    """τ-AP (Yilmaz et al. 2008): like τ, but errors near the top cost more. Not symmetric.

    Systems are ordered by `estimate` (ties in input order); a tie in `truth` counts one half. None for a constant truth
    or fewer than two systems.
    """
    true = np.asarray(truth, float)
    if true.size < 2 or np.ptp(true) == 0:
        return None
    true = true[np.argsort(-np.asarray(estimate, float), kind="stable")]
    share = [(np.sum(true[:i] > true[i]) + 0.5 * np.sum(true[:i] == true[i])) / i for i in range(1, true.size)]
    return float(2.0 * math.fsum(share) / (true.size - 1) - 1.0)


class Comparison(BaseModel):
    """How alike two rankings of the same systems are; null where undefined."""

    tau_b: float | None
    rho: float | None
    tau_ap: float | None


def compare(reference_scores: Mapping[str, float], judge_scores: Mapping[str, float]) -> Comparison:
    """Compare system scores under two label sets, over the tags that both hold."""
    tags = [tag for tag in reference_scores if tag in judge_scores]
    truth, estimate = [reference_scores[t] for t in tags], [judge_scores[t] for t in tags]
    tau_b, rho = kendall_tau_b(truth, estimate), spearman_rho(truth, estimate)
    return Comparison(tau_b=tau_b, rho=rho, tau_ap=tau_ap(truth, estimate))
