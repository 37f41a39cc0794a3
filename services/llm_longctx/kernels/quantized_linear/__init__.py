"""Linear layers of 8 or 4 bits: few rows of x times a packed matrix, x rounded to 8 bits per group of 32.

`reference` multiplies what the matrix stands for, in float64. Knows matrices; knows nothing about layers or files.
"""

from services.llm_longctx.kernels.fp8_linear import Fp8Matrix
from services.llm_longctx.kernels.quantized_linear.cpu_ext import multiply
from services.llm_longctx.kernels.quantized_linear.packing import LAYOUT, PackedMatrix, pack
from services.llm_longctx.kernels.quantized_linear.reference import multiply as reference

__all__ = ["LAYOUT", "PackedMatrix", "SmallMatrix", "multiply", "pack", "reference"]

SmallMatrix = PackedMatrix | Fp8Matrix
"""A matrix that kernels multiply with instead of a whole one."""
