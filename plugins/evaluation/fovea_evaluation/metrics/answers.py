"""Scores of an answer: which facts of a list it holds, and how far passages support its sentences.

Weights and names after the nugget evaluations of TREC (Voorhees, 2003; AutoNuggetizer: Pradeep et al., 2025,
arXiv:2504.15068): facts are vital or okay, an answer supports one, supports it in part, or does not.
"""

from collections.abc import Mapping, Sequence
from typing import Literal

from pydantic import BaseModel, Field

Importance = Literal["vital", "okay"]
Support = Literal["support", "partial_support", "not_support"]

SUPPORT_VALUES: Mapping[Support, float] = {"support": 1.0, "partial_support": 0.5, "not_support": 0.0}
OKAY_WEIGHT = 0.5


class NuggetScores(BaseModel):
    """Scores of one answer; partial support counts one half, null where there is nothing to count."""

    vital_recall: float | None = Field(description="Share of vital facts held.")
    strict_vital_recall: float | None = Field(description="Share of vital facts held as a whole.")
    all_recall: float | None = Field(description="Of all facts, okay ones at half the weight.")
    strict_all_recall: float | None
    precision: float | None = Field(description="Share of the answer's sentences that hold a fact, by similarity.")
    f1: float | None = Field(description="Harmonic mean of vital recall and precision.")


def score_answer(
    importances: Sequence[Importance], supports: Sequence[Support], sentence_hits: Sequence[bool]
) -> NuggetScores:
    """Score an answer by how it holds each fact, and by which of its sentences hold one."""
    graded = [SUPPORT_VALUES[support] for support in supports]
    whole = [float(value == 1.0) for value in graded]
    vital = [importance == "vital" for importance in importances]
    weights = [1.0 if one else OKAY_WEIGHT for one in vital]
    recall = _weighted(graded, [float(one) for one in vital])
    precision = sum(sentence_hits) / len(sentence_hits) if sentence_hits else None
    return NuggetScores(
        vital_recall=recall,
        strict_vital_recall=_weighted(whole, [float(one) for one in vital]),
        all_recall=_weighted(graded, weights),
        strict_all_recall=_weighted(whole, weights),
        precision=precision,
        f1=_harmonic_mean(recall, precision),
    )


class SentenceSupport(BaseModel):
    """A sentence of an answer."""

    text: str
    cited: dict[str, Support] = Field(
        {}, description="Cited id → how that passage supports the sentence; an unknown one supports nothing."
    )
    best: Support = Field("not_support", description="Support by the best passage, cited or not.")
    best_passage: str | None = None


class SupportScores(BaseModel):
    """Scores of an answer's sentences; partial support counts one half, null where there is nothing to count."""

    citation_precision: float | None = Field(description="Mean over citations.")
    citation_recall: float | None = Field(description="Mean over sentences; one without a citation counts 0.")
    faithfulness: float | None = Field(description="Mean over sentences, whatever they cite.")


def score_support(sentences: Sequence[SentenceSupport]) -> SupportScores:
    """Citation precision and recall, and faithfulness, of an answer's sentences."""
    cited = [[SUPPORT_VALUES[support] for support in one.cited.values()] for one in sentences]
    flat = [value for row in cited for value in row]
    return SupportScores(
        citation_precision=sum(flat) / len(flat) if flat else None,
        citation_recall=sum(max(row, default=0.0) for row in cited) / len(cited) if cited else None,
        faithfulness=sum(SUPPORT_VALUES[one.best] for one in sentences) / len(sentences) if sentences else None,
    )


def _weighted(values: Sequence[float], weights: Sequence[float]) -> float | None:
    total = sum(weights)
    return sum(value * weight for value, weight in zip(values, weights, strict=True)) / total if total else None


def _harmonic_mean(first: float | None, second: float | None) -> float | None:
    if first is None or second is None:
        return None
    return 2 * first * second / (first + second) if first + second else 0.0
