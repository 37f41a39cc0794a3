"""Ragged decode in plain torch: one fused call per problem, the queries of a group as its rows."""

from collections.abc import Sequence

import torch
from torch import Tensor

from services.llm_longctx.kernels.sdpa_lse import sdpa_lse


def decode(
    q: Tensor, keys: Sequence[Tensor], values: Sequence[Tensor], log_weights: Sequence[Tensor | None]
) -> tuple[Tensor, Tensor]:
    """See `decode`; the LSE is float32, or float64 for float64."""
    wide = torch.float64 if q.dtype == torch.float64 else torch.float32
    out, lse = torch.zeros_like(q), torch.full(q.shape[:2], -torch.inf, dtype=wide, device=q.device)
    for r, (k, v, weights) in enumerate(zip(keys, values, log_weights, strict=True)):
        if len(k):
            mixed, sums = sdpa_lse(q[None, None, r], k[None, None], v[None, None], bias=weights)
            out[r], lse[r] = mixed[0, 0], sums[0, 0]
    return out, lse
