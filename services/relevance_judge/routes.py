"""`/v1/judge/…`: agreement, rankings, ensembles, templates and calibrations, computed from what the request holds.

Files come as the text of TREC lines inside JSON. Nothing is stored. Knows HTTP; the maths is in the files beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field

from services.relevance_judge import ensembles, rankings, trec
from services.relevance_judge.agreement import agree
from services.relevance_judge.calibration import Calibration, How, fit
from services.relevance_judge.ensembles import Rounding, Tie
from services.relevance_judge.template import Template, fence, render, template, templates
from services.relevance_judge.uncertainty import kappa_interval
from services.relevance_judge.wire import EnsembleRule
from shared.errors import InvalidOption
from shared.serving.describe import problems

__all__ = ["router"]

router = APIRouter(prefix="/v1/judge", tags=["judge"])


class _Given(BaseModel):
    model_config = ConfigDict(extra="forbid")


class AgreementIn(_Given):
    """Two label sets."""

    reference: str = Field(description="Qrels lines, `qid 0 docid grade`.")
    judge: str = Field(description="Qrels lines of the judge.")
    draws: int = Field(2000, ge=1, le=10_000, description="Bootstrap samples of queries.")
    seed: int = Field(0, ge=0, lt=2**32, description="Of the bootstrap.")


class AgreementOut(BaseModel):
    """How far the judge agrees with the reference; null is undefined."""

    pairs: int
    missing: int
    extra: int
    clamped: int
    kappa: float | None
    kappa_interval: tuple[float, float] | None = Field(description="95 %, from a bootstrap over queries.")
    alpha: float | None = Field(description="Krippendorff's, ordinal.")
    kappa_linear: float | None
    kappa_quadratic: float | None
    kappa_by_cut: dict[str, float | None]
    alpha_by_cut: dict[str, float | None]
    confusion: list[list[int]] = Field(description="Rows are the reference's grades.")
    counts: list[int]
    bias: float | None
    mae: float | None
    bias_by_grade: list[float | None]
    kappa_by_query: dict[str, float | None]


@router.post("/agreement", responses=problems(400, 422))
def agreement(body: AgreementIn) -> AgreementOut:
    """Compare a judge's labels with reference labels."""
    reference, judge = trec.parse_qrels(body.reference, "reference"), trec.parse_qrels(body.judge, "judge")
    found = agree(reference, judge)
    facts = {**vars(found), "confusion": found.confusion.tolist()}
    return AgreementOut(**facts, kappa_interval=kappa_interval(reference, judge, draws=body.draws, seed=body.seed))


class RankingsIn(_Given):
    """Runs, and the label sets to rank them under."""

    reference: str = Field(description="Qrels lines.")
    judge: str = Field(description="Qrels lines of the judge.")
    runs: str = Field(description="Run lines of all systems, `qid Q0 docid rank score tag`.")
    measure: str = Field("ndcg_cut_10", description="ndcg, ndcg_cut_k, map, P_k, recip_rank or recall_k.")
    relevance_level: int = Field(1, ge=0, le=3, description="Lowest grade that counts as relevant.")


class SystemRow(BaseModel):
    """One system under both label sets; `shift` is how many ranks it gains under the judge."""

    system: str
    reference: float
    judge: float
    shift: int


class RankingsOut(BaseModel):
    """How alike the two rankings are, with kappa and alpha beside it: the two are unrelated, so look at both."""

    tau_b: float | None
    rho: float | None
    tau_ap: float | None
    kappa: float | None
    alpha: float | None
    systems: list[SystemRow] = Field(description="Best under the reference first.")


@router.post("/rankings", responses=problems(400, 422))
def rank(body: RankingsIn) -> RankingsOut:
    """Rank systems under two label sets, with trec_eval's semantics."""
    reference, judge = trec.parse_qrels(body.reference, "reference"), trec.parse_qrels(body.judge, "judge")
    runs = trec.parse_runs(body.runs)
    options: dict[str, Any] = {"measure": body.measure, "relevance_level": body.relevance_level}
    try:
        rankings.evaluate({}, {}, measures=[body.measure])  # an unknown measure is refused also without systems
        truth, told = (rankings.system_scores(runs, labels, **options) for labels in (reference, judge))
    except ValueError as error:
        raise InvalidOption(str(error), field="measure") from error
    shared = [tag for tag in sorted(truth, key=lambda tag: -truth[tag]) if tag in told]
    later = {tag: place for place, tag in enumerate(sorted(shared, key=lambda tag: -told[tag]))}
    rows = [
        SystemRow(system=tag, reference=truth[tag], judge=told[tag], shift=place - later[tag])
        for place, tag in enumerate(shared)
    ]
    agreed = agree(reference, judge)
    return RankingsOut(**vars(rankings.compare(truth, told)), kappa=agreed.kappa, alpha=agreed.alpha, systems=rows)


class EnsemblesIn(_Given):
    """Label sets to make one of."""

    judges: list[str] = Field(min_length=1, max_length=64, description="Qrels lines of each judge.")
    combine: EnsembleRule = Field("majority", description="How votes become one grade.")
    tie: Tie = Field("average", description="Which grade wins a tied majority.")
    rounding: Rounding = Field("half_up", description="How an average becomes a grade.")
    weights: list[float] | None = Field(None, description="Of an average, one per judge.")
    seed: int = Field(0, ge=0, description="For random ties.")


class EnsemblesOut(BaseModel):
    """The ensemble's labels."""

    qrels: str = Field(description="Pairs in the order in which the judges bring them up.")
    pairs: int
    counts: list[int] = Field(description="Labels per grade.")


@router.post("/ensembles", responses=problems(400, 422))
def combine(body: EnsemblesIn) -> EnsemblesOut:
    """Make one label set of several; who lacks a pair does not vote on it."""
    given = [trec.parse_qrels(text, f"judges[{place}]") for place, text in enumerate(body.judges)]
    pairs = list(dict.fromkeys(pair for labels in given for pair in labels))
    votes = [[labels.get(pair) for pair in pairs] for labels in given]
    try:
        grades = _combined(votes, body)
    except ValueError as error:
        raise InvalidOption(str(error)) from error
    made = {pair: grade for pair, grade in zip(pairs, grades, strict=True) if grade != ensembles.NO_VOTE}
    counts = [list(made.values()).count(grade) for grade in range(4)]
    return EnsemblesOut(qrels=trec.qrels_text(made), pairs=len(made), counts=counts)


def _combined(votes: Sequence[Sequence[int | None]], body: EnsemblesIn) -> list[int]:
    outside = [vote for row in votes for vote in row if vote is not None and not 0 <= vote <= 3]
    if outside:
        raise ValueError(f"A vote of {outside[0]} lies outside the grades 0–3.")
    if body.combine == "majority":
        return ensembles.majority(votes, tie=body.tie, seed=body.seed)
    if body.combine == "median":
        return ensembles.median(votes)
    return ensembles.average(votes, rounding=body.rounding, weights=body.weights)


class TemplateOut(BaseModel):
    """A template with its digest."""

    digest: str
    template: Template


@router.get("/templates")
def list_templates() -> list[TemplateOut]:
    """All templates."""
    return [TemplateOut(digest=one.digest, template=one) for one in templates().values()]


@router.get("/templates/{name}", responses=problems(404, 422))
def show_template(name: str) -> TemplateOut:
    """One template, by id or `id@digest`."""
    found = template(name)
    return TemplateOut(digest=found.digest, template=found)


class RenderIn(_Given):
    """A pair to see in a prompt."""

    query: str = Field(min_length=1, description="The query.")
    passage: str = Field(min_length=1, description="The passage.")
    seed: int | None = Field(None, ge=0, description="Makes the marks repeatable.")


class RenderOut(BaseModel):
    """What the model would be shown; one list of turns per criterion, or one alone."""

    system: str
    turns: list[tuple[str, ...]]


@router.post("/templates/{name}/render", responses=problems(404, 422))
def dry_run(name: str, body: RenderIn) -> RenderOut:
    """Render a template without asking any model."""
    chosen, mark = template(name), fence(body.query, body.passage, body.seed)
    asked = chosen.criteria.values() or [""]
    shown = [render(chosen, body.query, body.passage, mark=mark, criterion=criterion).turns for criterion in asked]
    return RenderOut(system=chosen.system, turns=shown)


class CalibrationIn(_Given):
    """Labelled signals to fit cuts on, and what the cuts will belong to."""

    signals: list[float] = Field(max_length=100_000, description="One per pair.")
    grades: list[int] = Field(max_length=100_000, description="Its label, 0–3.")
    queries: list[str] = Field(max_length=100_000, description="Its query; evaluation leaves whole queries out.")
    how: How = Field("quantile", description="`quantile`, or `kappa` for the best quadratic kappa.")
    signal: str | None = Field(None, description="Name of the signal.")
    model: str | None = Field(None, description="Language model that the cuts belong to; others are refused then.")
    template: str | None = Field(None, description="`id@digest` that the cuts belong to; others are refused then.")


class CalibrationOut(BaseModel):
    """Cuts to send along as `calibration` with `POST /v1/judge`, and their digest, which verdicts carry."""

    digest: str
    calibration: Calibration


@router.post("/calibrations", responses=problems(422))
def calibrate(body: CalibrationIn) -> CalibrationOut:
    """Fit cuts and evaluate them by leaving queries out."""
    owner = {"signal": body.signal, "model": body.model, "template": body.template}
    found = fit(body.signals, body.grades, body.queries, how=body.how).model_copy(update=owner)
    return CalibrationOut(digest=found.digest, calibration=found)
