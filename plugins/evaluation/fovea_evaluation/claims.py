"""Claims of a text: its sentences, the passages they cite, and how well another text covers a claim without any model.

Coverage is the mean of the embedder's cosine with the nearest sentence and the share of the claim's words in the text,
halved where a number of the claim is missing.
It knows no negation and no reasoning: a language model judges better, and this is what there is without one.
"""

import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fovea_evaluation.metrics.answers import Support
from services.relevance_judge.embeddings import load_embedder
from services.relevance_judge.metrics.baselines import overlap

_ID = r"[^\s\[\],]+"  # as TREC's `msmarco_v2.1_doc_29_12#3_56`
_CITED = rf"\[({_ID}(?:\s*,\s*{_ID})*)\]"
_BEGIN = r"(?=[^\W_a-zß-öø-ÿά-ώа-џ]|[\"'„“«»¿¡(\[])"  # no small letter
_END = re.compile(rf"(?:(?<=[.!?])(?:\s*{_CITED})*\s+|(?<=[。！？])(?:\s*{_CITED})*\s*){_BEGIN}")
_CITATION = re.compile(_CITED)
_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")

FULL, PARTIAL = 0.7, 0.45
"""Least coverage that counts as support, and as support in part."""
SAME = 0.9
"""Cosine from which two sentences say the same."""


def split_sentences(text: str) -> list[str]:
    """Sentences of a text; citations behind a full stop stay with the sentence that they follow."""
    found: list[str] = []
    begin = 0
    for end in [*(end.end() for end in _END.finditer(text)), len(text)]:
        piece = text[begin:end].strip()
        if found and not re.search(r"\w", strip_citations(piece)):  # "Why? [1]." is one sentence
            found[-1] = f"{found[-1]} {piece}".strip()
        elif piece:
            found.append(piece)
        begin = end
    return found


def read_citations(sentence: str) -> list[str]:
    """Ids in square brackets, `[1]` or `[a, b]`, in order and once each."""
    return list(dict.fromkeys(name.strip() for group in _CITATION.findall(sentence) for name in group.split(",")))


def strip_citations(sentence: str) -> str:
    """The sentence without ids in square brackets."""
    return re.sub(r"\s+([.,;!?])", r"\1", _CITATION.sub("", sentence)).strip()


def cover_claims(claims: Sequence[str], texts: Sequence[str]) -> NDArray[np.float64]:
    """How well each text covers each claim: [claims, texts], 0…1."""
    sentences = [split_sentences(text) or [text] for text in texts]
    owners = np.asarray([place for place, parts in enumerate(sentences) for _ in parts])
    embedder = load_embedder()
    near = embedder.embed(list(claims)) @ embedder.embed([part for parts in sentences for part in parts]).T
    found = np.zeros((len(claims), len(texts)))
    for row, claim in enumerate(claims):
        shares = overlap(claim, {str(column): text for column, text in enumerate(texts)})
        for column, text in enumerate(texts):
            cosine = max(float(near[row, owners == column].max()), 0.0)
            missing = set(_NUMBER.findall(claim)) - set(_NUMBER.findall(text))
            found[row, column] = (cosine + shares[str(column)]) / (4 if missing else 2)
    return found


def classify_coverage(coverage: float) -> Support:
    """The word for a coverage."""
    return "support" if coverage >= FULL else "partial_support" if coverage >= PARTIAL else "not_support"


def drop_repetitions(sentences: Sequence[str]) -> list[int]:
    """Indices of sentences that say something new, in order."""
    vectors = load_embedder().embed(list(sentences))
    kept: list[int] = []
    for place, vector in enumerate(vectors):
        if not kept or float((vectors[kept] @ vector).max()) < SAME:
            kept.append(place)
    return kept
