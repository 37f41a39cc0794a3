"""`POST /v1/judge/corrected` and `/budget`: system scores from a judge's labels, corrected by a human sample.

The unit is the query, since pairs of one query hang together. Stores nothing.
"""

import itertools
from typing import Any

import numpy as np
from fastapi import APIRouter
from numpy.typing import NDArray
from pydantic import BaseModel, Field

from fovea.errors import InvalidOption
from fovea_evaluation.metrics.corrected import LabelBudget, correct_mean, human_mean, plan_labels
from fovea_evaluation.metrics.rankings import find_measure
from fovea_evaluation.metrics.significance import tabulate_scores
from fovea_evaluation.routes.options import MAX_SYSTEMS, Measure, RelevanceLevel, Runs, read_grades
from services.relevance_judge.parsing import trec
from services.relevance_judge.schemas import StrictModel
from shared.serving.http.openapi_routes import problems

router = APIRouter(prefix="/v1/judge", tags=["judge"])

Floats = NDArray[np.float64]


class HumanSample(StrictModel):
    """Labels of a judge for all queries, and of people for some."""

    human: str = Field(description="Qrels lines by people, of some queries.")
    judge: str = Field(description="The judge's labels of all queries: qrels lines, or JSON lines of a batch.")
    runs: Runs
    measure: Measure = "ndcg_cut_10"
    relevance_level: RelevanceLevel = 1
    confidence: float = Field(0.95, gt=0.5, le=0.9999, description="Of the intervals.")


class EstimateOut(BaseModel):
    """A mean over queries, three ways."""

    judge_only: float = Field(description="By the judge's labels alone; it may be wrong, and no interval says how far.")
    human_only: float = Field(description="By the human sample alone.")
    human_interval: tuple[float, float]
    corrected: float = Field(description="By both, with prediction-powered inference.")
    interval: tuple[float, float]
    weight: float = Field(description="How much of the judge is used, 0…1.")
    gain: float = Field(description="How many times as many human labels the same width would take without the judge.")


class SystemEstimate(EstimateOut):
    """One system."""

    system: str


class DifferenceEstimate(EstimateOut):
    """Two systems, `first` − `second`."""

    first: str
    second: str
    is_significant: bool = Field(description="The corrected interval excludes 0; not corrected for many comparisons.")
    statement: str


class CorrectedOut(BaseModel):
    """Corrected scores and differences."""

    queries: int
    labelled: int = Field(description="Queries that people labelled.")
    systems: list[SystemEstimate]
    differences: list[DifferenceEstimate]


class BudgetIn(HumanSample):
    """A pilot, and the wished interval."""

    first: str | None = Field(None, description="With `second`: plan for their difference; else for each system.")
    second: str | None = None
    half_width: float = Field(gt=0, description="Half the width that the interval shall have.")
    total: int | None = Field(None, ge=3, le=10_000_000, description="Queries there will be; left out, the judge's.")


class BudgetRow(LabelBudget):
    """How many queries people must label; null where all of them are not enough."""

    target: str
    statement: str


class BudgetOut(BaseModel):
    """Plans, one per target."""

    total: int
    pilot: int
    plans: list[BudgetRow]


@router.post("/corrected", responses=problems(400, 422))
def correct_scores(body: HumanSample) -> CorrectedOut:
    """Correct system scores under a judge's labels by a human sample of queries."""
    names, human, judge, rest = _tabulate(body)
    systems = [
        SystemEstimate(system=name, **_estimate(human[place], judge[place], rest[place], body.confidence).model_dump())
        for place, name in enumerate(names)
    ]
    order = sorted(range(len(names)), key=lambda place: -systems[place].corrected)
    differences = []
    for a, b in itertools.combinations(order, 2):
        found = _estimate(human[a] - human[b], judge[a] - judge[b], rest[a] - rest[b], body.confidence)
        differences.append(_describe(names[a], names[b], found, body, human.shape[1]))
    return CorrectedOut(
        queries=human.shape[1] + rest.shape[1],
        labelled=human.shape[1],
        systems=[systems[place] for place in order],
        differences=differences,
    )


@router.post("/budget", responses=problems(400, 422))
def plan_budget(body: BudgetIn) -> BudgetOut:
    """Plan how many queries people must label for an interval of the wished width."""
    names, human, judge, rest = _tabulate(body)
    total = body.total or human.shape[1] + rest.shape[1]
    targets: dict[str, tuple[Floats, Floats]] = {}
    if body.first is None and body.second is None:
        targets = {name: (human[place], judge[place]) for place, name in enumerate(names)}
    else:
        for name in (body.first, body.second):
            if name not in names:
                raise InvalidOption(f"There is no run {name!r}; there are {', '.join(names)}.", field="first")
        a, b = names.index(body.first or ""), names.index(body.second or "")
        targets[f"{body.first} − {body.second}"] = (human[a] - human[b], judge[a] - judge[b])
    return BudgetOut(
        total=total,
        pilot=human.shape[1],
        plans=[_plan(target, *values, total, body) for target, values in targets.items()],
    )


def _tabulate(body: HumanSample) -> tuple[list[str], Floats, Floats, Floats]:
    """Systems, and their scores [systems, queries]: by people, by the judge on the same queries, on all others."""
    find_measure(body.measure)
    human_labels = trec.parse_qrels(body.human, "human")
    judge_labels = read_grades(body.judge, "judge")
    runs = trec.parse_runs(body.runs)
    if not 1 <= len(runs) <= MAX_SYSTEMS:
        raise InvalidOption(f"There are {len(runs)} systems; 1 to {MAX_SYSTEMS} can be measured.", field="runs")
    options: dict[str, Any] = {"measure": body.measure, "relevance_level": body.relevance_level}
    names, sampled, human = tabulate_scores(runs, human_labels, **options)
    _, queries, judge = tabulate_scores(runs, judge_labels, **options)
    places = {query: place for place, query in enumerate(queries)}
    if lacking := [query for query in sampled if query not in places]:
        raise InvalidOption(f"The judge has no labels of the query {lacking[0]}, which people labelled.", field="judge")
    chosen = [places[query] for query in sampled]
    others = [place for query, place in places.items() if query not in set(sampled)]
    return names, human, judge[:, chosen], judge[:, others]


def _estimate(human: Floats, judge: Floats, rest: Floats, confidence: float) -> EstimateOut:
    found = correct_mean(human, judge, rest, confidence=confidence)
    alone = human_mean(human, confidence=confidence)
    return EstimateOut(
        judge_only=float(np.concatenate([judge, rest]).mean()),
        human_only=alone.mean,
        human_interval=alone.interval,
        corrected=found.mean,
        interval=found.interval,
        weight=found.weight,
        gain=(alone.error / found.error) ** 2 if found.error > 0 else 1.0,
    )


def _describe(first: str, second: str, found: EstimateOut, body: HumanSample, labelled: int) -> DifferenceEstimate:
    low, high = found.interval
    is_significant = low > 0 or high < 0
    what = f"{found.corrected:+.4f} {body.measure} ({100 * body.confidence:g}% interval {low:+.4f} to {high:+.4f}"
    source = f"prediction-powered over {labelled} queries that people labelled)"
    verb = "differ by" if is_significant else "are not shown to differ:"
    statement = f"{first} and {second} {verb} {what}, {source}."
    facts = {"first": first, "second": second, "statement": statement}
    return DifferenceEstimate(**facts, is_significant=is_significant, **found.model_dump())


def _plan(target: str, human: Floats, judge: Floats, total: int, body: BudgetIn) -> BudgetRow:
    found = plan_labels(human, judge, total=total, half_width=body.half_width, confidence=body.confidence)
    wish = f"an interval of ±{body.half_width:g} {body.measure} for {target}"
    if found.with_judge is None:
        statement = f"All {total} queries are too few for {wish}."
    else:
        other = "even all are too few" if found.without_judge is None else f"{found.without_judge}"
        statement = f"For {wish} people must label {found.with_judge} of {total} queries; without the judge {other}."
    return BudgetRow(target=target, **vars(found), statement=statement)
