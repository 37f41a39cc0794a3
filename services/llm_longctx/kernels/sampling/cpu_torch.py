"""Sampling with torch, row by row, by the settings on the host: on any device the host waits for nothing."""

import torch
from torch import Tensor

from services.llm_longctx.kernels.sampling.rows import GREEDY_BELOW, RowSettings, SamplingRows


def sample(logits: Tensor, rows: SamplingRows) -> Tensor:
    """See `sample`."""
    return torch.cat([_draw(row, how) for row, how in zip(logits, rows, strict=True)])


def _draw(row: Tensor, how: RowSettings) -> Tensor:
    """One token [1]."""
    if how.temperature < GREEDY_BELOW:
        if row.device.type == "cpu":  # NumPy's is several times faster
            return torch.tensor([int(row.float().numpy().argmax())], device="cpu")
        return row.argmax(-1, keepdim=True)
    row = row.float()
    probs = ((row - row.max()) / how.temperature).softmax(-1)
    if how.min_p > 0:
        probs = probs.where(probs >= how.min_p * probs.max(), 0.0)
    if 0 < how.top_k < len(probs) or how.top_p < 1:
        probs = _keep_likeliest(probs, int(how.top_k), how.top_p)
    below = probs.cumsum(-1, dtype=torch.float64)
    return torch.searchsorted(below, below[-1:] * how.share, right=True).clamp(max=len(probs) - 1)


def _keep_likeliest(probs: Tensor, k: int, p: float) -> Tensor:
    """The k likeliest of them, and of these the ones before which less than a share p lies; others are zero."""
    ordered, ids = _sort(probs, k)
    if p < 1:  # the first always stays
        before = ordered.cumsum(-1, dtype=torch.float64) - ordered
        ordered = ordered.where(before < max(p, 1e-9) * ordered.sum(), 0.0)
    return torch.zeros_like(probs).scatter_(0, ids, ordered)


def _sort(probs: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k likeliest (0: all), likeliest first, with their numbers; of equals the lower number comes first."""
    if not k or probs.device.type != "cpu":
        ordered, ids = probs.sort(descending=True, stable=True)
        return ordered[: k or None], ids[: k or None]
    least = probs.topk(min(k, len(probs))).values[-1]
    above = (probs > least).nonzero()[:, 0]
    ids = torch.cat((above, (probs == least).nonzero()[: k - len(above), 0]))
    ordered, at = probs[ids].sort(descending=True, stable=True)
    return ordered, ids[at]
