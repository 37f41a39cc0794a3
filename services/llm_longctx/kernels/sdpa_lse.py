"""Scaled dot-product attention with its log-sum-exp: torch's fused operators, or a plain product in their place.

The operators that return the log-sum-exp, FlashAttention's on a GPU, are not public: they are looked for once, tried on
a tiny example, and where one is gone or has changed a plain product takes its place. Knows shapes only.
"""

from functools import cache, lru_cache
from typing import Any

import torch
from torch import Tensor

_HALVES = (torch.bfloat16, torch.float16)
_MOST_CHANNELS = 256
"""Channels of a head up to which FlashAttention works."""


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
    if bias is None and has_flash(q):
        out, lse, *_ = flash_operator()(q, k, v, 0.0, causal)
        return out, lse[..., : q.shape[2]]
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


def has_flash(q: Tensor) -> bool:
    """Whether FlashAttention takes such queries, where nothing is added to their scores."""
    fits = q.dtype in _HALVES and q.shape[-1] <= _MOST_CHANNELS and q.shape[-1] % 8 == 0
    return q.device.type == "cuda" and fits and _flash_answers(q.dtype, q.device)


def flash_operator() -> Any:
    """FlashAttention as torch has it: out, lse and more; None where it is gone."""
    return getattr(torch.ops.aten, "_scaled_dot_product_flash_attention", None)


@lru_cache(maxsize=16)
def _flash_answers(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether it answers as a plain product on this device."""
    q, k, v = torch.linspace(-2, 2, 3 * 2 * 16 * 64, device="cpu").view(3, 1, 2, 16, 64).to(device, dtype)
    try:
        out, lse, *_ = flash_operator()(q, k, v, 0.0, True)
    except (TypeError, RuntimeError, ValueError):
        return False
    wanted, sums = sdpa_lse_plain(q, k, v, causal=True)
    is_close = torch.allclose(out.float(), wanted.float(), atol=2e-2) and torch.allclose(lse[..., :16], sums, atol=1e-2)
    return bool(is_close)


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
