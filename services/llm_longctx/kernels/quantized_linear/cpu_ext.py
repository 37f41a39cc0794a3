"""Products with few-bit matrices by the C++ kernel next to this file, on a CPU."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from services.llm_longctx.kernels.native import bindings
from services.llm_longctx.kernels.quantized_linear.packing import PackedMatrix


def multiply(x: Tensor, layers: Sequence[tuple[PackedMatrix, Tensor | None]], *, gated: bool = False) -> list[Tensor]:
    """Rows of x [...,columns] times matrices: [...,rows] each, of x's dtype.

    A row's result does not depend on how many others there are.

    Args:
        x: float32 or bfloat16.
        layers: Matrices with their biases [rows], of x's dtype.
        gated: There are two, a gate and what it opens: one result, silu of the first times the second.

    Raises:
        ValueError: The sizes don't fit.
    """
    K = x.shape[-1]
    if any(matrix.columns != K for matrix, _ in layers):
        message = f"rows of {K} don't fit matrices of {[matrix.columns for matrix, _ in layers]} columns"
        raise ValueError(message)
    x = x.contiguous()
    # A gate and what it opens have one output.
    outs = [x.new_empty((*x.shape[:-1], matrix.rows)) for matrix, _ in layers[: 1 if gated else None]]
    packed = [matrix.data.contiguous() for matrix, _ in layers]  # named, as a copy must outlive the call
    words = []
    for (matrix, bias), data, out in zip(layers, packed, [*outs, *outs] if gated else outs, strict=True):
        words += [matrix.bits, data.data_ptr(), 0 if bias is None else bias.data_ptr(), out.data_ptr(), matrix.rows]
    bindings.multiply_packed(x, words, len(layers), (x.numel() // K, K), gated=gated)
    return outs
