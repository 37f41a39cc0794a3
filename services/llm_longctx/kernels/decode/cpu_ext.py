"""Ragged decode by the C++ kernel beside this file, float32 or bfloat16 on a CPU."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from services.llm_longctx.kernels.native import library

__all__ = ["decode"]


def decode(
    q: Tensor, keys: Sequence[Tensor], values: Sequence[Tensor], log_weights: Sequence[Tensor | None]
) -> tuple[Tensor, Tensor]:
    """See `decode`; the LSE is float32."""
    q = q.contiguous()
    R, G, d = q.shape
    out, lse = torch.empty_like(q), q.new_empty(R, G, dtype=torch.float32)
    # Whatever had to be copied must live until the call is over.
    copies: list[Tensor] = []
    words: list[int] = []
    for k, v, weights in zip(keys, values, log_weights, strict=True):
        (k_row, k_step), (v_row, v_step) = k.stride(), v.stride()
        if k_step != 1 or v_step != 1:
            k, v = k.contiguous(), v.contiguous()  # noqa: PLW2901  # the same entries, laid out for the kernel
            k_row, v_row = k.shape[1], v.shape[1]
            copies += k, v
        at = 0
        if weights is not None:
            weights = weights.to(torch.float32).contiguous()  # noqa: PLW2901  # as above
            copies.append(weights)
            at = weights.data_ptr()
        words += k.data_ptr(), v.data_ptr(), k_row, v_row, k.shape[0], at
    library.decode(q, words, (R, G, d), out, lse)
    return out, lse
