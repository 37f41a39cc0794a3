"""`POST /v1/judge/rankings`: rank systems under two label sets. Stores nothing."""

from __future__ import annotations

from collections.abc import Mapping

from fastapi import APIRouter
from pydantic import BaseModel, Field

from fovea_evaluation.metrics import rankings
from fovea_evaluation.metrics.rankings import Missing
from fovea_evaluation.routes.options import Measure, RelevanceLevel
from services.relevance_judge.metrics.agreement import agree
from services.relevance_judge.parsing import trec
from services.relevance_judge.parsing.label_formats import parse_labels
from services.relevance_judge.schemas import StrictModel
from shared.serving.http.openapi_routes import problems

router = APIRouter()


class RankingsIn(StrictModel):
    """Runs, and the label sets to rank them under."""

    reference: str = Field(description="Qrels lines.")
    judge: str = Field(description="Qrels lines of the judge, or JSON lines as batches write them.")
    runs: str = Field(description="Run lines of all systems, `qid Q0 docid rank score tag`.")
    measure: Measure = "ndcg_cut_10"
    relevance_level: RelevanceLevel = 1
    missing: Missing = Field("skip", description="Queries that a run lacks: `skip` as trec_eval, or `zero`.")
    families: dict[str, str] = Field({}, description="System → family, for example `llm`.")
    favoured: str = Field("llm", description="The family that the judge might prefer, being of its own kind.")


class SystemRow(BaseModel):
    """One system under both label sets; `shift` is how many ranks it gains under the judge."""

    system: str
    family: str | None = None
    reference: float
    judge: float
    shift: int


class FamilyRow(BaseModel):
    """A family of systems: how many ranks, and how much of the measure, it gains under the judge on average."""

    family: str
    systems: int
    shift: float
    difference: float


class RankingsOut(rankings.Comparison):
    """Correlation of the two rankings, with kappa and alpha next to it: they are unrelated, so look at both."""

    kappa: float | None
    alpha: float | None
    systems: list[SystemRow] = Field(description="Best under the reference first.")
    families: list[FamilyRow] = Field([])
    self_preference: float | None = Field(
        None, description="Mean shift of the favoured family less that of all other systems; null without both."
    )


@router.post("/rankings", responses=problems(400, 422))
def rank(body: RankingsIn) -> RankingsOut:
    """Rank systems under two label sets, with trec_eval's semantics."""
    reference, judge = trec.parse_qrels(body.reference, "reference"), parse_labels(body.judge, "judge").labels
    runs = trec.parse_runs(body.runs)
    options = body.model_dump(include={"measure", "relevance_level", "missing"})
    rankings.find_measure(body.measure)  # also without systems
    truth, estimate = (rankings.system_scores(runs, labels, **options) for labels in (reference, judge))
    rows = _rows(truth, estimate, body.families)
    agreement = agree(reference, judge)
    return RankingsOut(
        **vars(rankings.compare(truth, estimate)),
        kappa=agreement.kappa,
        alpha=agreement.alpha,
        systems=rows,
        families=_families(rows),
        self_preference=_preference(rows, body.favoured),
    )


def _rows(truth: Mapping[str, float], estimate: Mapping[str, float], families: Mapping[str, str]) -> list[SystemRow]:
    shared = [tag for tag in sorted(truth, key=lambda tag: -truth[tag]) if tag in estimate]
    judge_ranks = {tag: place for place, tag in enumerate(sorted(shared, key=lambda tag: -estimate[tag]))}
    found = []
    for place, tag in enumerate(shared):
        scores = {"reference": truth[tag], "judge": estimate[tag]}
        found.append(SystemRow(system=tag, family=families.get(tag), **scores, shift=place - judge_ranks[tag]))
    return found


def _families(rows: list[SystemRow]) -> list[FamilyRow]:
    groups: dict[str, list[SystemRow]] = {}
    for row in rows:
        if row.family is not None:
            groups.setdefault(row.family, []).append(row)
    return [
        FamilyRow(
            family=name,
            systems=len(group),
            shift=sum(row.shift for row in group) / len(group),
            difference=sum(row.judge - row.reference for row in group) / len(group),
        )
        for name, group in sorted(groups.items())
    ]


def _preference(rows: list[SystemRow], favoured: str) -> float | None:
    ours = [row.shift for row in rows if row.family == favoured]
    rest = [row.shift for row in rows if row.family != favoured]
    return sum(ours) / len(ours) - sum(rest) / len(rest) if ours and rest else None
