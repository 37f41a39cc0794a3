"""Linear layers in FP8 (e4m3): few rows of x, rounded with a scale per row, times a matrix with a scale per row of it.

Cards from compute capability 8.9 on multiply such numbers. `reference` rounds and multiplies alike, in float64. Knows
matrices; knows nothing about layers or files.
"""

from services.llm_longctx.kernels.fp8_linear.matrix import LEAST_CAPABILITY, Fp8Matrix, pack_fp8
from services.llm_longctx.kernels.fp8_linear.reference import multiply as reference

__all__ = ["LEAST_CAPABILITY", "Fp8Matrix", "pack_fp8", "reference"]
