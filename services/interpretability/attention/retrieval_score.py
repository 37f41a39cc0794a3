"""Retrieval score of attention heads, and its aggregation: pure functions of pattern rows, token ids and texts.

"Retrieval Head Mechanistically Explains Long-Context Factuality" (2024), sections 2 and 3. Knows no model.
"""

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

ScoreMode = Literal["positions", "types", "count"]
Head = tuple[int, int]

_WORD = re.compile(r"[a-z0-9]+")


def top_positions(row: np.ndarray, top: int = 1) -> np.ndarray:
    """Return the `top` largest positions of pattern rows [..., S], largest first, ties to the lowest: [..., top]."""
    order = row.argmax(-1)[..., None] if top == 1 else np.argsort(-row, axis=-1, kind="stable")
    largest: np.ndarray = order.take(range(top), -1, mode="clip")  # of fewer positions the last comes again
    return largest


def score_copies(
    positions: np.ndarray,
    prompt_ids: Sequence[int],
    generated: Sequence[int],
    span: tuple[int, int],
    mode: ScoreMode = "positions",
) -> np.ndarray:
    """Score heads by the answer tokens that they copied, from the positions that they looked at most: [L,H].

    `positions` are [steps,L,H,top], largest first; `generated` is the token of each step, from the same step's rows,
    and `span` [a,b) is where the answer stands in the prompt. The mode is `positions`, `types` (the paper's set
    formula) or `count` (the released code's; may exceed 1).
    """
    (a, b), ids = span, np.asarray(prompt_ids)
    inside = (positions >= a) & (positions < b)
    tokens = np.where(inside, ids[np.clip(positions, a, b - 1)], -1)
    is_copy = inside & (tokens == np.asarray(generated)[:, None, None, None])
    copied = is_copy.any(-1)
    if mode == "count":
        return np.asarray(copied.sum(0) / (b - a))
    # One copy per step at most: that of the largest position that qualifies.
    first = is_copy.argmax(-1)[..., None]
    values = positions if mode == "positions" else tokens
    targets = range(a, b) if mode == "positions" else sorted(set(ids[a:b].tolist()))
    value = np.take_along_axis(values, first, -1)[..., 0]
    hits = [(copied & (value == target)).any(0) for target in targets]
    score: np.ndarray = np.sum(hits, axis=0) / len(hits)
    return score


def retrieval_score(
    rows: Any,
    prompt_ids: Sequence[int],
    generated: Sequence[int],
    span: tuple[int, int],
    *,
    mode: ScoreMode = "positions",
    top: int = 1,
) -> np.ndarray:
    """Score heads by their pattern rows [steps,L,H,S]: float64 [L,H]; see `score_copies`.

    Step t sees the first n + t positions of a prompt of n tokens; columns behind them are padding. A step counts where
    any of its `top` largest positions qualifies.
    """
    n = len(prompt_ids)
    steps = [top_positions(np.asarray(row)[..., : n + t], top) for t, row in enumerate(rows)]
    positions = np.stack(steps) if steps else np.zeros((0, *np.shape(rows)[1:3], top), int)
    return score_copies(positions, prompt_ids, generated, span, mode).astype(np.float64)


def rouge1_recall(reference: str, response: str) -> float:
    """Return the ROUGE-1 recall: clipped matches of lower-case [a-z0-9]+ words over the reference's; 0 without any."""
    expected, actual = (Counter(_WORD.findall(text.lower())) for text in (reference, response))
    return sum((expected & actual).values()) / total if (total := expected.total()) else 0.0


@dataclass(frozen=True, slots=True)
class Aggregate:
    """Scores of many samples, combined in one map.

    Attributes:
        kept: Indices of the samples that count.
        mean: Mean score [L, H]; zeros where no sample was kept.
        frequency: Share of kept samples with a score above 0 [L, H].
        ranking: Heads (layer, head), best first, ties to the lower; empty where no sample was kept.
        always_active: Heads with a score above 0 in every kept sample.
    """

    kept: list[int]
    mean: np.ndarray
    frequency: np.ndarray
    ranking: list[Head]
    always_active: list[Head]

    def at_least(self, threshold: float) -> list[Head]:
        """Return the heads with a mean score of `threshold` or more, best first."""
        return [head for head in self.ranking if self.mean[head] >= threshold]

    def top(self, fraction: float) -> list[Head]:
        """Return the best max(1, ceil(fraction·L·H)) heads."""
        return self.ranking[: max(1, math.ceil(fraction * self.mean.size - 1e-9))]


def aggregate(scores: Any, recalls: Sequence[float], *, gate: float = 0.5) -> Aggregate:
    """Average scores [samples,L,H] over the samples that were answered.

    Samples whose recall, the share of the answer that the response held, is at or below `gate` are dropped: a head
    can't be credited for an answer that was not given.
    """
    table = np.asarray(scores, np.float64)
    kept = [i for i, recall in enumerate(recalls) if recall > gate]
    if not kept:
        none = np.zeros(table.shape[1:])
        return Aggregate([], none, none, [], [])
    chosen = table[kept]
    mean, frequency = chosen.mean(0), (chosen > 0).mean(0)
    active = [(int(l), int(h)) for l, h in np.argwhere((chosen > 0).all(0))]
    return Aggregate(kept, mean, frequency, rank_heads(mean), active)


def rank_heads(scores: np.ndarray) -> list[Head]:
    """Rank all heads by a score [L, H], descending, ties to lower (layer, head)."""
    order = np.argsort(-scores, axis=None, kind="stable")
    return [(int(i // scores.shape[1]), int(i % scores.shape[1])) for i in order]


def split_half(scores: np.ndarray) -> float | None:
    """Correlate the mean maps of even and odd samples [samples, L, H]; None for fewer than two samples."""
    halves = [scores[i::2].mean(0).ravel() for i in range(2)] if len(scores) > 1 else []
    return float(np.corrcoef(*halves)[0, 1]) if min((half.std() for half in halves), default=0) else None
