"""Citation scores of an answer: how far passages support its sentences, those that are cited and any."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import BaseModel, Field

from services.relevance_judge.metrics.nuggets import SUPPORT_VALUES, Support


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
