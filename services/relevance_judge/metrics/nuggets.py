"""Nugget scores of an answer: which facts of a list it holds, and how much of it is none of them.

Weights and names after the nugget evaluations of TREC (Voorhees, 2003; AutoNuggetizer: Pradeep et al., 2025,
arXiv:2504.15068): facts are vital or okay, an answer supports one, supports it in part, or does not.
"""

from __future__ import annotations

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


def _weighted(values: Sequence[float], weights: Sequence[float]) -> float | None:
    total = sum(weights)
    return sum(value * weight for value, weight in zip(values, weights, strict=True)) / total if total else None


def _harmonic_mean(first: float | None, second: float | None) -> float | None:
    if first is None or second is None:
        return None
    return 2 * first * second / (first + second) if first + second else 0.0
