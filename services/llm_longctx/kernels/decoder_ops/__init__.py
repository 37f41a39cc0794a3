"""Decoder-layer operations beside attention (norm, projections, rotation, MLP gate): torch's, or C++ ones.

The oracle is `shared.lm.ops.TORCH`, in float64. Knows tensors and linear layers; knows nothing about models.
"""

from __future__ import annotations

import torch

from services.llm_longctx.kernels.decoder_ops.cpu_ext import NativeOps
from services.llm_longctx.kernels.dispatch import choose
from shared.lm.ops import TORCH, Ops

__all__ = ["layer_ops"]


def layer_ops(backend: str, dtype: torch.dtype, device: str) -> Ops:
    """The operations for a model of this dtype on this device.

    Args:
        backend: `auto` or a name of `backends()`; all but `cpu_ext` compute with torch.
        dtype: Of the model.
        device: Its device's type.

    Raises:
        BadInput: No back end has this name.
        NotReady: The named one is not there or can't take this dtype or device.
    """
    return NativeOps() if choose("layer", backend, dtype, device) == "cpu_ext" else TORCH
