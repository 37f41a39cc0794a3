"""`POST /v1/judge/significance`: which differences between systems are more than chance. Stores nothing."""

from __future__ import annotations

from fastapi import APIRouter
from pydantic import BaseModel, Field

from fovea.errors import InvalidOption
from fovea_evaluation.metrics.rankings import find_measure
from fovea_evaluation.metrics.significance import Correction, PairTest, compare_systems, tabulate_scores
from fovea_evaluation.routes.options import MAX_SYSTEMS, Measure, RelevanceLevel, Runs, Seed
from services.relevance_judge.parsing import trec
from services.relevance_judge.parsing.label_formats import parse_labels
from services.relevance_judge.schemas import StrictModel
from shared.serving.http.openapi_routes import problems

router = APIRouter()


class SignificanceIn(StrictModel):
    """Runs and the labels to measure them by."""

    labels: str = Field(description="Qrels lines, or JSON lines as batches write them.")
    runs: Runs
    measure: Measure = "ndcg_cut_10"
    relevance_level: RelevanceLevel = 1
    baseline: str | None = Field(None, description="Compare with this system only; left out, all pairs.")
    correction: Correction = Field("holm", description="For many comparisons; `max-t` permutes all systems together.")
    level: float = Field(0.05, gt=0, lt=0.5, description="Corrected p at which a difference counts.")
    draws: int = Field(5000, ge=100, le=20_000, description="Permutations, and bootstrap samples.")
    seed: Seed = 0


class PairOut(PairTest):
    """Two systems over the same queries."""

    is_significant: bool
    statement: str


class SignificanceOut(BaseModel):
    """Systems, best first, and their comparisons."""

    measure: str
    queries: int
    systems: dict[str, float]
    comparisons: list[PairOut]


@router.post("/significance", responses=problems(400, 422))
def compare_runs(body: SignificanceIn) -> SignificanceOut:
    """Test the differences between systems over the same queries."""
    labels, runs = parse_labels(body.labels, "labels").labels, trec.parse_runs(body.runs)
    find_measure(body.measure)
    if not 2 <= len(runs) <= MAX_SYSTEMS:
        raise InvalidOption(f"There are {len(runs)} systems; 2 to {MAX_SYSTEMS} can be compared.", field="runs")
    if body.baseline is not None and body.baseline not in runs:
        raise InvalidOption(f"There is no run {body.baseline!r}; there are {', '.join(runs)}.", field="baseline")
    names, queries, scores = tabulate_scores(runs, labels, measure=body.measure, relevance_level=body.relevance_level)
    if len(queries) < 2:
        raise InvalidOption(f"The labels hold {len(queries)} queries; 2 are the least.", field="labels")
    how = body.model_dump(include={"baseline", "correction", "draws", "seed"})
    tests = compare_systems(names, scores, confidence=1 - body.level, **how)
    means = {name: float(row.mean()) for name, row in zip(names, scores, strict=True)}
    return SignificanceOut(
        measure=body.measure,
        queries=len(queries),
        systems=dict(sorted(means.items(), key=lambda one: -one[1])),
        comparisons=[_describe(test, body, len(tests), len(queries)) for test in tests],
    )


def _describe(test: PairTest, body: SignificanceIn, tests: int, queries: int) -> PairOut:
    is_significant = test.p_corrected <= body.level
    low, high = test.interval
    evidence = (
        f"{abs(test.difference):.4f} {body.measure} over {queries} queries ({1 - body.level:.0%} interval "
        f"{low:+.4f} to {high:+.4f}; permutation p {test.p:.4g}"
        + (f", {body.correction} over {tests} comparisons {test.p_corrected:.4g})" if tests > 1 else ")")
    )
    better, worse = (test.first, test.second) if test.difference >= 0 else (test.second, test.first)
    statement = f"It is not shown that {better} and {worse} differ: {evidence}."
    if is_significant:
        statement = f"{better} is better than {worse} by {evidence}."
    return PairOut(**vars(test), is_significant=is_significant, statement=statement)
