"""The oracle of sink-and-window prefill: the whole map, in float64."""

import torch
from torch import Tensor


def prefill(q: Tensor, k: Tensor, v: Tensor, sink: int, window: int) -> tuple[Tensor, Tensor]:
    """See `window_prefill`."""
    (H, T, d), (G, N) = q.shape, k.shape[:2]
    i, j = torch.arange(N - T, N)[:, None], torch.arange(N)
    hidden = (j > i) | ((j >= sink) & (i - j >= window))
    keys, values = (x.double().repeat_interleave(H // G, 0) for x in (k, v))
    scores = (q.double() @ keys.mT * d**-0.5).masked_fill(hidden, -torch.inf)
    return scores.softmax(-1) @ values, scores.logsumexp(-1)
