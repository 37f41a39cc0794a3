"""`POST /v1/judge/ensembles`: combine several label sets into one. Stores nothing."""

from __future__ import annotations

from collections.abc import Sequence

from fastapi import APIRouter
from pydantic import BaseModel, Field

from fovea.errors import InvalidOption
from services.relevance_judge.metrics import ensembles
from services.relevance_judge.metrics.ensembles import Rounding, Tie
from services.relevance_judge.parsing import trec
from services.relevance_judge.parsing.label_formats import parse_labels
from services.relevance_judge.schemas import EnsembleRule, StrictModel
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
    weights: list[float] | None = Field(None, description="Weights of an average, one per judge.")
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
    pairs = list(dict.fromkeys(pair for labels in label_sets for pair in labels))
    votes = [[labels.get(pair) for pair in pairs] for labels in label_sets]
    try:
        grades = _combine(votes, body)
    except ValueError as error:
        raise InvalidOption(str(error)) from error
    combined = {pair: grade for pair, grade in zip(pairs, grades, strict=True) if grade != ensembles.NO_VOTE}
    counts = [list(combined.values()).count(grade) for grade in range(4)]
    return EnsemblesOut(qrels=trec.format_qrels(combined), pairs=len(combined), counts=counts)


def _combine(votes: Sequence[Sequence[int | None]], body: EnsemblesIn) -> list[int]:
    outside = [vote for row in votes for vote in row if vote is not None and not 0 <= vote <= 3]
    if outside:
        raise ValueError(f"A vote of {outside[0]} lies outside the grades 0–3.")
    if body.combine == "majority":
        return ensembles.majority(votes, tie=body.tie, seed=body.seed)
    if body.combine == "median":
        return ensembles.median(votes)
    return ensembles.average(votes, rounding=body.rounding, weights=body.weights)
