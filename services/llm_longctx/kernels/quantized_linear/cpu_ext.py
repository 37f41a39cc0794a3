"""Products with few-bit matrices by the C++ kernel beside this file, on a CPU."""

from __future__ import annotations

import torch
from torch import Tensor

from services.llm_longctx.kernels.native import bindings
from services.llm_longctx.kernels.quantized_linear.packing import PackedMatrix

__all__ = ["multiply"]


def multiply(x: Tensor, matrix: PackedMatrix) -> Tensor:
    """Rows of x [B,columns] times the matrix: float32 [B,rows].

    A row's result does not depend on how many others there are.

    Raises:
        ValueError: The sizes don't fit.
    """
    if x.dim() != 2 or x.shape[1] != matrix.columns:
        message = f"rows of {matrix.columns} are multiplied, not {list(x.shape)}"
        raise ValueError(message)
    x = x.float().contiguous()
    out = torch.empty(len(x), matrix.rows)
    bindings.multiply_packed(x, matrix.data.contiguous(), matrix.bits, out)
    return out
