"""Citation scores of an answer: how far passages support its sentences, those that are cited and any."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from services.relevance_judge.metrics.nuggets import SUPPORT_VALUES, Support


@dataclass(frozen=True)
class SentenceSupport:
    """A sentence of an answer.

    Attributes:
        cited: How each passage that it cites supports it; a citation of an unknown passage supports nothing.
        best: How the passage that supports it most does, whether cited or not.
    """

    text: str
    cited: dict[str, Support] = field(default_factory=dict)
    best: Support = "not_support"
    best_passage: str | None = None


@dataclass(frozen=True)
class SupportScores:
    """Scores of an answer's sentences; partial support counts one half; None where there is nothing to count.

    Attributes:
        citation_precision: Mean over citations of how far they support their sentence.
        citation_recall: Mean over sentences of their best citation's support; a sentence without one counts 0.
        faithfulness: Mean over sentences of the best passage's support.
    """

    citation_precision: float | None
    citation_recall: float | None
    faithfulness: float | None


def score_support(sentences: Sequence[SentenceSupport]) -> SupportScores:
    """Citation precision and recall, and faithfulness, of an answer's sentences."""
    cited = [[SUPPORT_VALUES[support] for support in one.cited.values()] for one in sentences]
    flat = [value for row in cited for value in row]
    return SupportScores(
        citation_precision=sum(flat) / len(flat) if flat else None,
        citation_recall=sum(max(row, default=0.0) for row in cited) / len(cited) if cited else None,
        faithfulness=sum(SUPPORT_VALUES[one.best] for one in sentences) / len(sentences) if sentences else None,
    )
