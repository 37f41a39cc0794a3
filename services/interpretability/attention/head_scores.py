"""Head scores: pattern scores on a repeated sequence, the top fraction of heads, and the overlap of two circuits.

"Circuit Component Reuse Across Tasks" (2024), section 4. Knows arrays and a decoder; knows no task.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from services.interpretability.attention.pattern_capture import visit_patterns
from shared.lm.decoder import Decoder

Head = tuple[int, int]


@torch.no_grad()
def head_patterns(model: Decoder, half: Sequence[int]) -> dict[str, np.ndarray]:
    """Score what heads look at on a sequence whose `half` of n ids comes twice.

    Returns `previous` (mean P[t,t−1], t ≥ 1), `duplicate` (P[t,t−n], t ≥ n), `induction` (P[t,t−n+1], t ≥ n), `first`
    (P[t,0], t ≥ 1) and `entropy` (mean row entropy, nats), each [L,H].
    """
    ids = torch.tensor([[*half, *half]], device=model.output_matrix.device)
    return repeated_scores(model, ids, len(half))


def repeated_scores(model: Decoder, ids: Tensor, period: int) -> dict[str, np.ndarray]:
    """Return the scores of `head_patterns` on ids [1,T] that repeat after `period` tokens."""
    shape = (model.config.layers, model.config.heads)
    sums = {name: np.zeros(shape) for name in ("previous", "duplicate", "induction", "first", "entropy")}
    T, n = ids.shape[1], period

    def visit(layer: int, start: int, rows: Tensor) -> None:
        wide = rows[0].double()
        end = start + wide.shape[1]

        def sum_diagonal(back: int, since: int) -> np.ndarray:
            chosen = torch.arange(max(since, back, start), max(end, since, back), device=wide.device)
            total: np.ndarray = wide[:, chosen - start, chosen - back].sum(-1).cpu().numpy()
            return total

        sums["previous"][layer] += sum_diagonal(1, 1)
        sums["duplicate"][layer] += sum_diagonal(n, n)
        sums["induction"][layer] += sum_diagonal(n - 1, n)
        sums["first"][layer] += wide[:, max(1 - start, 0) :, 0].sum(-1).cpu().numpy()
        sums["entropy"][layer] += -torch.special.xlogy(wide, wide).sum((-1, -2)).cpu().numpy()

    visit_patterns(model, ids, visit)
    counts = {"previous": T - 1, "duplicate": T - n, "induction": T - n, "first": T - 1, "entropy": T}
    return {name: total / max(counts[name], 1) for name, total in sums.items()}


def top_heads(importance: object, fraction: float) -> list[Head]:
    """Return the max(1, ceil(fraction·L·H)) heads of largest |importance| [L,H], without NaN, ties to the lower."""
    table = np.asarray(importance, np.float64)
    size = np.where(np.isnan(table), -1.0, np.abs(table))
    order = np.argsort(-size, axis=None, kind="stable")[: max(1, math.ceil(fraction * table.size))]
    return [(int(i // table.shape[1]), int(i % table.shape[1])) for i in order if size.flat[i] >= 0]


@dataclass(frozen=True, slots=True)
class Overlap:
    """Overlap of two circuits.

    Attributes:
        first, second: The heads of each.
        shared: In both, ascending.
        union: In either, ascending.
        jaccard: Shared over union.
        coefficient: Shared over the smaller circuit.
        share: Shared over the first circuit.
    """

    first: list[Head]
    second: list[Head]
    shared: list[Head]
    union: list[Head]
    jaccard: float
    coefficient: float
    share: float


def overlap(first: Sequence[object], second: Sequence[object], fraction: float) -> Overlap:
    """Compare two circuits by their stages' importances [L,H]: per stage the top fraction, united over the stages."""
    one = {head for stage in first for head in top_heads(stage, fraction)}
    other = {head for stage in second for head in top_heads(stage, fraction)}
    shared, union = sorted(one & other), sorted(one | other)

    def per(count: int) -> float:
        return len(shared) / count if count else 0.0

    return Overlap(
        sorted(one), sorted(other), shared, union, per(len(union)), per(min(len(one), len(other))), per(len(one))
    )
