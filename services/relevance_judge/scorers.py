"""Relevance scores in 0…1 of passages for one query: by a judge, by sentence embeddings, or by BM25.

Higher is more relevant; scores of different scorers can't be compared. Knows no HTTP.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec

from services.relevance_judge.embeddings import load_embedder
from services.relevance_judge.metrics.baselines import bm25
from services.relevance_judge.schemas import Verdict
from shared.lm.bundled_models import MINILM, bundled_embedder

Scorer = Callable[[str, Sequence[str], Callable[[], None]], list[float]]
"""Scores passages for a query; calls the third argument now and then, which raises when nobody waits any more."""


def score_bm25(query: str, passages: Sequence[str], check: Callable[[], None]) -> list[float]:
    """BM25 with the document frequencies of these passages, s / (1 + s)."""
    check()
    found = bm25(query, {str(i): text for i, text in enumerate(passages)})
    return [found[str(i)] / (1 + found[str(i)]) for i in range(len(passages))]


def score_embeddings(query: str, passages: Sequence[str], check: Callable[[], None]) -> list[float]:
    """Cosine of the sentence embeddings; opposite directions count as 0; errors as of `load_embedder`."""
    rows = load_embedder().embed([query, *passages], check)
    return [min(max(float(rows[0] @ row), 0.0), 1.0) for row in rows[1:]]


SCORERS: Mapping[str, Scorer] = {MINILM: score_embeddings, "bm25": score_bm25}
"""Scorers that are no judges, by name."""

_HIGHEST_GRADE = 3


def count_tokens(name: str, texts: Sequence[str]) -> int:
    """Tokens of different texts that a scorer reads; BM25 reads words."""
    if name != MINILM:
        return 0
    embedder = load_embedder()
    return sum(len(embedder.read(text)) for text in texts)


def default_scorer() -> str | None:
    """The scorer of requests that name none: embeddings where they are installed, else the default judge."""
    return MINILM if find_spec("torch") is not None and bundled_embedder() is not None else None


def score_verdict(verdict: Verdict) -> float:
    """A verdict as a score: the expected grade, else the logistic of the signal, else the grade, else 0."""
    if verdict.expected is not None:
        return verdict.expected / _HIGHEST_GRADE
    if verdict.signal is not None:
        return 1 / (1 + math.exp(-min(max(verdict.signal, -50.0), 50.0)))
    return (verdict.grade or 0) / _HIGHEST_GRADE if verdict.valid else 0.0
