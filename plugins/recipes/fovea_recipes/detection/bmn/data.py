"""Synthetic videos as features: eight classes of action in noise, and a recogniser that knows which is which.

Knows numpy and the rule of the data; knows no network. A video is what a backbone would give of it: features (c, t),
class semantics (s, t), class probabilities (s, t), and true segments. A digest names exactly this data.

Inside a segment the features carry the class's prototype and drift along its trajectory; its first and last cell carry
a bump that all boundaries share. Bursts carry the bump alone: what only looks at boundaries is fooled by them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np

CLASSES, FEATURES, LENGTH = 8, 64, 32

Split = Literal["train", "valid", "test"]

_SPLITS: dict[Split, int] = {"train": 1, "valid": 2, "test": 3}
_RHO, _NOISE = 0.7, 0.5


@dataclass(frozen=True, slots=True, eq=False)
class Videos:
    """Many videos.

    Attributes:
        features: (v, c, t) float32.
        semantics: (v, s, t) float32: class probabilities minus their mean over the video.
        scores: (v, s, t) float32: class probabilities.
        segments: Per video, true segments (k, 2) in 0..1.
        labels: Per video, the class (k,) of each.
    """

    features: np.ndarray
    semantics: np.ndarray
    scores: np.ndarray
    segments: list[np.ndarray]
    labels: list[np.ndarray]

    @classmethod
    def stack(cls, drawn: Iterable[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]) -> Videos:
        """Videos of features (c, t), scores (s, t), segments (k, 2) and labels (k,) each."""
        features, scores, segments, labels = zip(*drawn, strict=True)
        held = np.stack(scores).astype(np.float32)
        semantics = held - held.mean(axis=2, keepdims=True)
        return cls(np.stack(features).astype(np.float32), semantics, held, list(segments), list(labels))

    @property
    def digest(self) -> str:
        """sha256 over everything in it."""
        state = hashlib.sha256()
        for array in (self.features, self.semantics, *self.segments, *self.labels):
            state.update(np.ascontiguousarray(array).tobytes())
        return state.hexdigest()


def videos(split: Split, count: int, world: int = 0) -> Videos:
    """So many videos of a split; no video is in two of them, and all splits share the classes of their world."""
    drawn = np.random.default_rng((world, 0)).standard_normal((2 * CLASSES + 1, FEATURES))
    drawn /= np.linalg.norm(drawn, axis=1, keepdims=True)
    prototypes, drifts, bump = drawn[:CLASSES], 0.4 * drawn[CLASSES:-1], drawn[-1]
    rng = np.random.default_rng((world, _SPLITS[split]))
    return Videos.stack(_video(rng, prototypes, drifts, bump) for _ in range(count))


def _video(
    rng: np.random.Generator, prototypes: np.ndarray, drifts: np.ndarray, bump: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Features (c, t), class probabilities (s, t), segments (k, 2) and labels (k,) of one video.

    Each class has a unit prototype and a drift (s, c); all boundaries share the bump (c,).
    """
    features = _background(rng)
    spans = _spans(rng)
    labels = rng.integers(CLASSES, size=len(spans))
    truth = np.full(LENGTH, CLASSES)
    for (first, last), label in zip(spans, labels, strict=True):
        u = np.linspace(0, 1, last - first + 1)
        features[:, first : last + 1] += 0.8 * prototypes[label][:, None] * (1 + 0.3 * np.sin(np.pi * u))
        features[:, first : last + 1] += drifts[label][:, None] * u
        features[:, [first, last]] += 0.6 * bump[:, None]
        truth[first : last + 1] = label
    for cell in rng.integers(LENGTH, size=rng.integers(1, 4)):
        features[:, cell] += 0.6 * bump
    logits = 2.0 * np.eye(CLASSES + 1)[truth].T + rng.standard_normal((CLASSES + 1, LENGTH))
    odds = np.exp(logits)
    scores = (odds / odds.sum(0))[:CLASSES]
    return features, scores, np.array([(a / LENGTH, (b + 1) / LENGTH) for a, b in spans]), labels


def _background(rng: np.random.Generator) -> np.ndarray:
    """First-order autoregressive noise (c, t) of a fixed spread."""
    noise = rng.standard_normal((FEATURES, LENGTH)) * _NOISE
    for cell in range(1, LENGTH):
        noise[:, cell] = _RHO * noise[:, cell - 1] + np.sqrt(1 - _RHO**2) * noise[:, cell]
    return noise


def _spans(rng: np.random.Generator) -> list[tuple[int, int]]:
    """One to four spans of 2 to 14 cells that do not touch; the last cell stays free, as BMN never proposes it."""
    wanted, spans = rng.integers(1, 5), list[tuple[int, int]]()
    for _ in range(50):
        length = int(rng.integers(2, 15))
        first = int(rng.integers(LENGTH - length))
        last = first + length - 1
        if all(last + 1 < a or first > b + 1 for a, b in spans):
            spans.append((first, last))
        if len(spans) == wanted:
            break
    return sorted(spans)
