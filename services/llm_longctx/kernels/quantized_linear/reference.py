"""Products with few-bit matrices in float64, x as it is: what the rounding of x is measured against."""

import torch
from torch import Tensor

from services.llm_longctx.kernels.quantized_linear.packing import PackedMatrix


def multiply(x: Tensor, matrix: PackedMatrix) -> Tensor:
    """Rows of x [B,columns] times the matrix: float64 [B,rows]."""
    return x.double() @ torch.from_numpy(matrix.unpack().dequantize()).double().mT
