"""The oracle of sampling: sorted probabilities in float64, one row after the other."""

import torch
from torch import Tensor

from services.llm_longctx.kernels.sampling.rows import GREEDY_BELOW, RowSettings, SamplingRows


def sample(logits: Tensor, rows: SamplingRows) -> Tensor:
    """See `sample`."""
    drawn = [_draw(row, how) for row, how in zip(logits.detach().cpu().double(), rows, strict=True)]
    return torch.tensor(drawn, dtype=torch.int64, device=logits.device)


def keep_likeliest(row: Tensor, how: RowSettings) -> Tensor:
    """Probabilities [V] of a row, zero where the limits leave nothing."""
    probs = ((row - row.max()) / how.temperature).softmax(-1)
    probs = probs.where(probs >= how.min_p * probs.max(), 0.0)
    ordered, ids = probs.sort(descending=True, stable=True)
    if how.top_k:
        ordered[int(how.top_k) :] = 0
    before = ordered.cumsum(-1) - ordered
    if how.top_p < 1:
        ordered[before >= max(how.top_p, 1e-9) * ordered.sum()] = 0
    return torch.zeros_like(probs).scatter_(0, ids, ordered)


def _draw(row: Tensor, how: RowSettings) -> int:
    if how.temperature < GREEDY_BELOW:
        return int(row.numpy().argmax())
    below = keep_likeliest(row, how).cumsum(-1)
    return int((below > how.share * below[-1]).int().argmax())
