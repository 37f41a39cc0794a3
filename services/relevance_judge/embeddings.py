"""Embeddings of queries and passages by the sentence embedders that are installed, long passages in windows.

PyTorch is imported at the first call, so that a service whose judges only ask endpoints starts without it.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from hashlib import blake2b
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fovea.errors import NotReady
from shared.lm.bundled_models import MINILM, MPNET, bundled_embedder

if TYPE_CHECKING:
    from shared.lm.embedder import SentenceEmbedder

_SHARES = {MPNET: 2 / 3, MINILM: 1 / 3}
"""Share of each embedder in the cosine that judges; one alone has all.

Chosen on Cranfield, and checked on the even-numbered tags of `loadtests.labelled`: the best share there, 3/4, leads by
hardly more.
"""

OVERLAP = 0.5
"""Share of a window that the next one repeats."""
MAX_WINDOWS = 32
MAX_RECENT_WINDOWS = 8192
"""Windows whose vectors are kept: 25 MB of the large embedder."""

_Key = tuple[str, bytes]


def load_embedder(name: str = MINILM) -> SentenceEmbedder:
    """An embedder, loaded at the first call; `NotReady` without PyTorch, `NotFound` if it is not installed."""
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
    """Embed texts in windows, or reuse late results: unit vectors [w, d], and for each window the index of its text."""
    keys = [(name, blake2b(text.encode("utf8", "surrogatepass"), digest_size=16).digest()) for text in texts]
    found = {key: vectors for key in keys if (vectors := _RECENT.get(key)) is not None}
    missing = {key: text for key, text in zip(keys, texts, strict=True) if key not in found}
    if missing:
        embedder = load_embedder(name)
        split = [split_windows(text, embedder) for text in missing.values()]
        vectors = embedder.embed([window for windows in split for window in windows])
        ends = np.cumsum([len(windows) for windows in split])[:-1]
        found |= dict(zip(missing, np.split(vectors, ends), strict=True))
        _RECENT.keep({key: found[key] for key in missing})
    owners = [place for place, key in enumerate(keys) for _ in found[key]]
    return np.concatenate([found[key] for key in keys]), owners


class _RecentVectors:
    """Vectors [w, d] of the texts embedded last: topics share passages, and a trust report reads them again."""

    def __init__(self) -> None:
        self._vectors: OrderedDict[_Key, NDArray[np.float32]] = OrderedDict()
        self._windows = 0
        self._lock = threading.Lock()

    def get(self, key: _Key) -> NDArray[np.float32] | None:
        """The vectors of a text, or None."""
        with self._lock:
            if key in self._vectors:
                self._vectors.move_to_end(key)
            return self._vectors.get(key)

    def keep(self, vectors: dict[_Key, NDArray[np.float32]]) -> None:
        """Keep vectors, and drop those that were not used for longest."""
        with self._lock:
            for key, one in vectors.items():
                self._windows += len(one) - len(self._vectors.get(key, ()))
                self._vectors[key] = one.copy()
            while self._windows > MAX_RECENT_WINDOWS:
                self._windows -= len(self._vectors.popitem(last=False)[1])


_RECENT = _RecentVectors()


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
