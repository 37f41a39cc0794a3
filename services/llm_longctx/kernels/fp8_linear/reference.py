"""Products with FP8 matrices in float64, x rounded as the kernels round it."""

from torch import Tensor

from services.llm_longctx.kernels.fp8_linear.matrix import Fp8Matrix, round_rows


def multiply(x: Tensor, matrix: Fp8Matrix) -> Tensor:
    """Rows of x [B,columns] times the matrix: float64 [B,rows]."""
    codes, scale = round_rows(x)
    return (codes.float() * scale).double() @ matrix.unpack().double().mT
