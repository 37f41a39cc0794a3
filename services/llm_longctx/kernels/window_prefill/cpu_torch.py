"""Sink-and-window prefill in plain torch: one fused call under a mask, the keys of a group shared without a copy."""

import torch
from torch import Tensor

from services.llm_longctx.kernels.sdpa_lse import sdpa_lse


def prefill(q: Tensor, k: Tensor, v: Tensor, sink: int, window: int) -> tuple[Tensor, Tensor]:
    """See `window_prefill`."""
    (H, T, d), (G, N) = q.shape, k.shape[:2]
    i, j = torch.arange(N - T, N, device=q.device)[:, None], torch.arange(N, device=q.device)
    hidden = (j > i) | ((j >= sink) & (i - j >= window))
    bias = torch.zeros(T, N, dtype=q.dtype, device=q.device).masked_fill_(hidden, -torch.inf)
    keys, values = (x[:, None].expand(G, H // G, N, d) for x in (k, v))
    out, lse = sdpa_lse(q.view(G, H // G, T, d), keys, values, bias=bias)
    return out.reshape(H, T, d), lse.reshape(H, T)
