"""Decoder-layer operations besides attention (norm, projections, rotation, MLP gate): torch's, C++ or Triton's.

The oracle is `shared.lm.ops.TORCH`, in float64. Knows tensors and linear layers; knows nothing about models.
"""

from collections.abc import Mapping
from types import MappingProxyType

import torch
from torch import nn

from services.llm_longctx.kernels.decoder_ops.cpu_ext import NativeOps
from services.llm_longctx.kernels.decoder_ops.packed_pass import PackedPass
from services.llm_longctx.kernels.dispatch import choose
from services.llm_longctx.kernels.quantized_linear import PackedMatrix, SmallMatrix
from shared.lm.ops import TORCH, Ops

__all__ = ["NativeOps", "PackedPass", "layer_ops"]


def layer_ops(
    backend: str,
    dtype: torch.dtype,
    device: str,
    packed: Mapping[nn.Linear, SmallMatrix] = MappingProxyType({}),
    head: SmallMatrix | None = None,
) -> Ops:
    """The operations for a model of this dtype on this device.

    Args:
        backend: `auto` or a name of `backends()`; `reference` and `cpu_torch` compute with torch.
        dtype: Of the model.
        device: Its device's type.
        packed: Few-bit matrices of its layers, which `cpu_ext` and `triton` multiply with instead of their weights.
        head: Few-bit matrix of its logits, with which they multiply instead of the whole one.

    Raises:
        BadInput: No back end has this name.
        NotReady: The named one is not there or can't take this dtype or device.
    """
    if (chosen := choose("layer", backend, dtype, device)) == "triton":
        from services.llm_longctx.kernels.decoder_ops.triton import TritonOps  # noqa: PLC0415  # may not be installed

        return TritonOps(packed, head)
    if chosen != "cpu_ext":
        return TORCH
    few = {layer: matrix for layer, matrix in packed.items() if isinstance(matrix, PackedMatrix)}
    return NativeOps(few, head if isinstance(head, PackedMatrix) else None)
