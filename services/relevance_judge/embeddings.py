"""Embeddings of queries and passages by the sentence embedders that are installed, long passages in windows.

PyTorch is imported at the first call, so that a service whose judges only ask endpoints starts without it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fovea.errors import NotReady
from shared.lm.bundled_models import MINILM, MPNET, bundled_embedder

if TYPE_CHECKING:
    from shared.lm.embedder import SentenceEmbedder

_SHARES = {MPNET: 2 / 3, MINILM: 1 / 3}
"""Share of each embedder in the cosine that judges; chosen on Cranfield (docs/03-judge.md). One alone has all."""

OVERLAP = 0.5
"""Share of a window that the next one repeats."""
MAX_WINDOWS = 32


def load_embedder(name: str = MINILM) -> SentenceEmbedder:
    """An embedder, loaded at the first call.

    Raises:
        NotReady: PyTorch is not installed.
        NotFound: The embedder is not installed.
    """
    try:
        from shared.lm.embedder import load_embedder as load  # noqa: PLC0415  # loads torch
    except ModuleNotFoundError as error:
        hint = "Install the extra cpu or gpu next to relevance-judge."
        raise NotReady(f"The embedder needs the package {error.name}, which is not installed.", hint=hint) from error
    return load(name)


def judging_embedders() -> dict[str, float]:
    """Embedder → its share of the cosine that judges, of those that are installed; the small one where none is."""
    shares = {name: share for name, share in _SHARES.items() if bundled_embedder(name)} or {MINILM: 1.0}
    whole = sum(shares.values())
    return {name: share / whole for name, share in shares.items()}


def split_windows(text: str, embedder: SentenceEmbedder) -> list[str]:
    """A text as windows of words that each fit the embedder, every one repeating half of the one before."""
    most = MAX_WINDOWS * embedder.max_tokens  # no window reaches beyond as many words
    words = text.split(None, most)[:most]
    text = " ".join(words) if len(words) == most else text
    tokens = len(embedder.tokenize(text))
    if tokens <= embedder.max_tokens or len(words) < 2:
        return [text]
    size = max(int(len(words) * (embedder.max_tokens - 2) / tokens), 1)
    step = max(int(size * (1 - OVERLAP)), 1)
    starts = range(0, max(len(words) - size, 0) + step, step)
    return [" ".join(words[start : start + size]) for start in list(starts)[:MAX_WINDOWS]]


def embed_windows(texts: Sequence[str], name: str = MINILM) -> tuple[NDArray[np.float32], list[int]]:
    """Embed texts in windows.

    Returns:
        Unit vectors [w, d] of all windows, and for each window the index of its text.
    """
    embedder = load_embedder(name)
    split = [split_windows(text, embedder) for text in texts]
    owners = [place for place, windows in enumerate(split) for _ in windows]
    return embedder.embed([window for windows in split for window in windows]), owners


def cosines(query: str, passages: Sequence[str]) -> list[float]:
    """Mean cosine of each passage's window nearest to the query under the judging embedders."""
    values = np.zeros(len(passages))
    for name, share in judging_embedders().items():
        embedder = load_embedder(name)
        vectors, owners = embed_windows(passages, name)
        near = vectors @ embedder.embed([query])[0]
        best = np.full(len(passages), -1.0)
        np.maximum.at(best, owners, near)
        values += share * best
    return [float(value) for value in values]
