"""Head scores: pattern scores on a repeated sequence, and the top fraction of heads. Knows arrays and a decoder."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from services.interpretability.attention.pattern_capture import visit_patterns
from services.interpretability.attention.retrieval_score import Head, rank_heads
from shared.lm.decoder import Decoder


@torch.no_grad()
def head_patterns(model: Decoder, half: Sequence[int]) -> dict[str, np.ndarray]:
    """Score what heads look at on a sequence whose `half` of n ids comes twice.

    Returns `previous` (mean P[t,t−1], t ≥ 1), `duplicate` (P[t,t−n], t ≥ n), `induction` (P[t,t−n+1], t ≥ n), `first`
    (P[t,0], t ≥ 1) and `entropy` (mean row entropy, nats), each [L,H].
    """
    T, n = 2 * len(half), len(half)
    ids = torch.tensor([[*half, *half]], device=model.output_matrix.device)
    counts = {"previous": T - 1, "duplicate": T - n, "induction": T - n, "first": T - 1, "entropy": T}
    sums = {name: np.zeros((model.config.layers, model.config.heads)) for name in counts}

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
    return {name: total / max(counts[name], 1) for name, total in sums.items()}


def top_heads(importance: object, fraction: float) -> list[Head]:
    """Return the max(1, ceil(fraction·L·H)) heads of largest |importance| [L,H], without NaN, ties to the lower."""
    table = np.asarray(importance, np.float64)
    size = np.where(np.isnan(table), -1.0, np.abs(table))
    return [head for head in rank_heads(size)[: max(1, math.ceil(fraction * table.size - 1e-9))] if size[head] >= 0]
