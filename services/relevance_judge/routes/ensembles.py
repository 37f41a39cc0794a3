"""`POST /v1/judge/ensembles`: label sets become one; `…/weights`: signals are weighed by labelled pairs."""

from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter
from pydantic import BaseModel, Field

from fovea.errors import InvalidOption
from services.relevance_judge.metrics import ensembles
from services.relevance_judge.metrics.calibration import Calibration, fit
from services.relevance_judge.metrics.ensembles import EnsembleRule, Rounding, Tie
from services.relevance_judge.metrics.signal_weights import SignalWeights, combine_signals, fit_signal_weights
from services.relevance_judge.parsing import trec
from services.relevance_judge.parsing.label_formats import SignalSet, parse_labels, parse_signals
from services.relevance_judge.schemas import StrictModel
from shared.serving.http.openapi_routes import problems

router = APIRouter()


class EnsemblesIn(StrictModel):
    """Label sets to combine."""

    judges: list[str] = Field(
        min_length=1, max_length=64, description="Qrels lines of each judge, or JSON lines as batches write them."
    )
    combine: EnsembleRule = Field("majority", description="How votes become one grade.")
    tie: Tie = Field("average", description="Which grade wins a tied majority.")
    rounding: Rounding = Field("half_up", description="How an average becomes a grade.")
    weights: list[Annotated[float, Field(ge=0, le=1e6)]] | None = Field(None, description="Of an average, per judge.")
    seed: int = Field(0, ge=0, description="For random ties.")


class EnsemblesOut(BaseModel):
    """The ensemble's labels."""

    qrels: str = Field(description="Pairs in the order in which they first appear.")
    pairs: int
    counts: list[int] = Field(description="Labels per grade.")


@router.post("/ensembles", responses=problems(400, 422))
def combine(body: EnsemblesIn) -> EnsemblesOut:
    """Combine label sets into one; a judge that lacks a pair does not vote on it."""
    label_sets = [parse_labels(text, f"judges[{place}]").labels for place, text in enumerate(body.judges)]
    pairs = sorted({pair for labels in label_sets for pair in labels})  # a random tie hangs on the place of its pair
    options = body.model_dump(include={"tie", "rounding", "weights", "seed"})
    if body.weights and body.combine != "average":
        raise InvalidOption(f"The {body.combine} has no weights.", hint="Combine by average.", field="weights")
    votes = [[labels.get(pair) for pair in pairs] for labels in label_sets]
    if outside := [vote for labels in label_sets for vote in labels.values() if not 0 <= vote <= 3]:
        raise InvalidOption(f"A vote of {outside[0]} lies outside the grades 0–3.")
    try:
        grades = ensembles.combine_votes(votes, body.combine, **options)
    except ValueError as error:
        raise InvalidOption(str(error)) from error
    found = {pair: grade for pair, grade in zip(pairs, grades, strict=True) if grade != ensembles.NO_VOTE}
    combined = {pair: found[pair] for labels in label_sets for pair in labels if pair in found}
    counts = [list(combined.values()).count(grade) for grade in range(4)]
    return EnsemblesOut(qrels=trec.format_qrels(combined), pairs=len(combined), counts=counts)


class WeightsIn(StrictModel):
    """Signals of several judges on the same labelled pairs."""

    reference: str = Field(description="Qrels lines by people.")
    judges: dict[str, str] = Field(
        min_length=2, max_length=8, description="Name → JSON lines of a batch, or run lines (which can't vote later)."
    )
    ridge: float = Field(1.0, ge=0, le=1e4, description="Penalty on large weights.")


class MemberRow(BaseModel):
    """One judge: its weight, and how well its signal alone orders pairs."""

    judge: str
    weight: float
    pair_order: float | None


class WeightsOut(BaseModel):
    """The ensemble, and what it is worth on queries that its weights have not seen."""

    pairs: int
    queries: int
    members: list[MemberRow]
    pair_order: float | None = Field(
        description="Of the weighted sum; each query scored with weights fitted without it."
    )
    pair_order_equal: float | None = Field(description="Of the unweighted sum.")
    options: dict[str, Any] | None = Field(
        description="Options for the judge `ensemble`, to send with pairs; null where a judge names no template."
    )


@router.post("/ensembles/weights", responses=problems(400, 422))
def fit_weights(body: WeightsIn) -> WeightsOut:
    """Fit weights so that the sum of standardised signals orders the passages of a query as people do."""
    labels = trec.parse_reference(body.reference)
    judges = {name: parse_signals(text, name) for name, text in body.judges.items()}
    pairs = [pair for pair in labels if all(pair in one.signals for one in judges.values())]
    if not pairs:
        raise InvalidOption("No labelled pair has a signal of every judge.", field="judges")
    x = np.asarray([[one.signals[pair] for one in judges.values()] for pair in pairs])
    y, queries = [min(max(labels[pair], 0), 3) for pair in pairs], [qid for qid, _ in pairs]
    found = fit_signal_weights(x, y, queries, ridge=body.ridge)
    return WeightsOut(
        pairs=len(pairs),
        queries=len(set(queries)),
        members=[
            MemberRow(judge=name, weight=weight, pair_order=alone)
            for name, weight, alone in zip(judges, found.weights, found.alone, strict=True)
        ],
        pair_order=found.pair_order,
        pair_order_equal=found.equal,
        options=_build_options(judges, found, x, y, queries),
    )


def _build_options(
    judges: dict[str, SignalSet], found: SignalWeights, x: Any, y: list[int], queries: list[str]
) -> dict[str, Any] | None:
    """Members with their calibrations, and the calibration of the sum."""
    if any(one.template is None for one in judges.values()):
        return None
    members = []
    for column, (one, weight) in enumerate(zip(judges.values(), found.weights, strict=True)):
        owner = {"model": one.llm, "template": one.template}
        cuts = fit(x[:, column], y, queries).model_copy(update=owner)
        members.append({"template": one.template, "weight": weight, "calibration": _dump(cuts)})
    return {"members": members, "combine": "signals", "calibration": _dump(fit(combine_signals(x, found), y, queries))}


def _dump(cuts: Calibration) -> dict[str, Any]:
    return cuts.model_dump(mode="json", exclude={"name", "version"}, exclude_none=True)
