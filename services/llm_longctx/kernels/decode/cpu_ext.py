"""Ragged decode by the C++ kernel next to this file, float32 or bfloat16 on a CPU."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from services.llm_longctx.kernels.native import bindings
from services.llm_longctx.kernels.packed_pages.layout import PackedLayout


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
    bindings.decode(q, np.array(words, np.int64), (R, G, d), out, lse)
    return out, lse


def decode_runs(
    q: Tensor, stores: tuple[Tensor, Tensor, Tensor], start: np.ndarray, n: np.ndarray, weighted: np.ndarray
) -> tuple[Tensor, Tensor]:
    """See `decode_runs`."""
    q, (keys, values, log_weights) = q.contiguous(), stores
    R, G, d = q.shape
    out, lse = torch.empty_like(q), q.new_empty(R, G, dtype=torch.float32)
    words = np.zeros((R, 6), np.int64)
    keys, values = (x if x.stride(1) == 1 else x.contiguous() for x in (keys, values))
    for at, x in enumerate((keys, values)):
        words[:, at], words[:, 2 + at] = x.data_ptr() + start * (x.stride(0) * x.element_size()), x.stride(0)
    words[:, 4] = n
    if weighted.any():
        words[weighted, 5] = log_weights.data_ptr() + log_weights.element_size() * start[weighted]
    bindings.decode(q, words, (R, G, d), out, lse)
    return out, lse


def decode_packed(
    q: Tensor, packed: tuple[PackedLayout, Tensor, Tensor], start: np.ndarray, n: np.ndarray, weighted: np.ndarray
) -> tuple[Tensor, Tensor]:
    """See `decode_packed`; log-weights are float32."""
    q, (layout, pages, log_weights) = q.contiguous(), packed
    out, lse = torch.empty_like(q), q.new_empty(q.shape[:2], dtype=torch.float32)
    runs = np.ascontiguousarray(start), np.ascontiguousarray(n), np.ascontiguousarray(weighted)
    bindings.decode_packed(q, (pages, log_weights), runs, layout.bits, out, lse)
    return out, lse
