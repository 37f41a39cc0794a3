"""`POST /v1/judge/ensembles`: combine several label sets into one. Stores nothing."""

from __future__ import annotations

from fastapi import APIRouter
from pydantic import BaseModel, Field

from fovea.errors import InvalidOption
from services.relevance_judge.metrics import ensembles
from services.relevance_judge.metrics.ensembles import EnsembleRule, Rounding, Tie
from services.relevance_judge.parsing import trec
from services.relevance_judge.parsing.label_formats import parse_labels
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
    options = body.model_dump(include={"tie", "rounding", "weights", "seed"})
    votes = [[labels.get(pair) for pair in pairs] for labels in label_sets]
    if outside := [vote for labels in label_sets for vote in labels.values() if not 0 <= vote <= 3]:
        raise InvalidOption(f"A vote of {outside[0]} lies outside the grades 0–3.")
    try:
        grades = ensembles.combine_votes(votes, body.combine, **options)
    except ValueError as error:
        raise InvalidOption(str(error)) from error
    combined = {pair: grade for pair, grade in zip(pairs, grades, strict=True) if grade != ensembles.NO_VOTE}
    counts = [list(combined.values()).count(grade) for grade in range(4)]
    return EnsemblesOut(qrels=trec.format_qrels(combined), pairs=len(combined), counts=counts)
