"""Products with few-bit matrices by the C++ kernel next to this file, on a CPU."""

from collections.abc import Sequence

import torch
from torch import Tensor

from services.llm_longctx.kernels.native import bindings
from services.llm_longctx.kernels.quantized_linear.packing import PackedMatrix


def multiply(
    x: Tensor,
    layers: Sequence[tuple[PackedMatrix, Tensor | None]],
    norm: tuple[Tensor, float, float] | None = None,
    *,
    gated: bool = False,
    wide: bool = False,
) -> list[Tensor]:
    """Rows of x [...,columns] times matrices: [...,rows] each, of x's dtype, or the norm's where there is one.

    A row's result does not depend on how many others there are.

    Args:
        x: float32 or bfloat16.
        layers: Matrices with their biases [rows], of the results' dtype.
        norm: Weight [columns], eps and offset of an RMSNorm that x passes first, in float32.
        gated: There are two, a gate and what it opens: one result, silu of the first times the second.
        wide: Results are float32 in any case.

    Raises:
        ValueError: The sizes don't fit.
    """
    K = x.shape[-1]
    if any(matrix.columns != K for matrix, _ in layers):
        raise ValueError(f"rows of {K} don't fit matrices of {[matrix.columns for matrix, _ in layers]} columns")
    x, dtype = x.contiguous(), x.dtype if norm is None else norm[0].dtype
    kind = torch.float32 if wide else dtype
    # A gate and what it opens have one output.
    outs = [x.new_empty((*x.shape[:-1], matrix.rows), dtype=kind) for matrix, _ in layers[: 1 if gated else None]]
    packed = [matrix.data.contiguous() for matrix, _ in layers]  # named, as a copy must outlive the call
    words = []
    for (matrix, bias), data, out in zip(layers, packed, [*outs, *outs] if gated else outs, strict=True):
        words += [matrix.bits, data.data_ptr(), 0 if bias is None else bias.data_ptr(), out.data_ptr(), matrix.rows]
    bindings.multiply_packed(x, words, dtype, norm, gated=gated, output="wide" if wide else "narrow")
    return outs
