"""Scaled dot-product attention with its log-sum-exp: torch's fused operator, or a plain product in its place.

The operator that returns the log-sum-exp on a CPU is not public: it is looked for once, tried on a tiny example, and
where it is gone or has changed a plain product takes its place. Knows shapes only.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor


def sdpa_lse(
    q: Tensor, k: Tensor, v: Tensor, *, causal: bool = False, bias: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Attention with its LSE.

    Args:
        q: [b,h,t,d].
        k: [b,h,n,d], n ≥ 1.
        v: [b,h,n,d].
        causal: Query i sees keys 0 … i.
        bias: Added to the scaled scores, broadcast to [b,h,t,n]; −inf hides.

    Returns:
        out [b,h,t,d] in q's dtype; natural-log lse [b,h,t], float32 or, for float64, float64. A row that sees nothing
        has out 0 and lse −inf.
    """
    if q.device.type != "cpu" or (fused := _fused()) is None:
        return sdpa_lse_plain(q, k, v, causal=causal, bias=bias)
    if bias is not None:
        bias = bias.to(q.dtype).expand(*q.shape[:2], q.shape[2], k.shape[2])
    out, lse = fused(q, k, v, 0.0, causal, attn_mask=bias)
    if bias is None:
        return out, lse
    empty = bias.isneginf().all(-1)
    return out.masked_fill(empty[..., None], 0), lse.masked_fill(empty, -torch.inf)


def sdpa_lse_plain(
    q: Tensor, k: Tensor, v: Tensor, *, causal: bool = False, bias: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """`sdpa_lse` by products, scores in float32 or wider."""
    wide = torch.float64 if q.dtype == torch.float64 else torch.float32
    scores = q.to(wide) @ k.to(wide).transpose(-1, -2) * q.shape[-1] ** -0.5
    if causal:
        t, n = scores.shape[-2:]
        scores = scores.masked_fill(~torch.ones(t, n, dtype=torch.bool, device=q.device).tril(), -torch.inf)
    if bias is not None:
        scores = scores + bias
    lse = scores.logsumexp(-1)
    shares = torch.exp(scores - torch.where(lse.isneginf(), torch.zeros_like(lse), lse)[..., None])
    return (shares @ v.to(wide)).to(q.dtype), lse


@cache
def _fused() -> Any:
    """The private operator, or None where this torch has none that answers as expected."""
    operator = getattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu", None)
    q = torch.arange(12.0).view(1, 1, 3, 4) / 12
    try:
        out, lse = operator(q, q, q, 0.0, True, attn_mask=None)  # type: ignore[misc]  # None is caught below
    except (TypeError, RuntimeError, ValueError):
        return None
    wanted, sums = sdpa_lse_plain(q, q, q, causal=True)
    return operator if torch.allclose(out, wanted, atol=1e-5) and torch.allclose(lse, sums, atol=1e-5) else None
