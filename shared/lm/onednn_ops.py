"""Packed oneDNN operations: a decoder's matrices are laid out once, for reading much text with one model on a CPU.

Torch lays a matrix out again in every product, which costs most where blocks are short. The price is a second copy of
the matrices in memory. Knows linear layers; knows nothing about blocks, texts or attention.
"""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from shared.lm.decoder import Decoder
from shared.lm.ops import TORCH, NormLayer, Ops, OpsAround

LAYOUT_ROWS = 64
"""Rows of a product that the layout is optimised for; others work, too."""

_DTYPES = {torch.float32, torch.bfloat16}


class PackedOps(OpsAround):
    """`shared.lm.ops.Ops` without gradients; the stream keeps the model's dtype.

    In float32 a row's result does not depend on how many other rows there are. In bfloat16 its last bit may, where
    oneDNN multiplies in tiles (AMX).
    """

    def __init__(self, layers: Iterable[nn.Linear]) -> None:
        super().__init__(TORCH)
        reorder = torch.ops.mkldnn._reorder_linear_weight  # noqa: SLF001  # what torch's own freezing calls; it has no other name
        self._matrices = {layer: reorder(layer.weight.detach(), LAYOUT_ROWS) for layer in layers}

    def products(
        self, x: Tensor, layers: Sequence[nn.Linear], norm: NormLayer | None = None, *, added: bool = False
    ) -> list[Tensor]:
        x = x if norm is None else norm(x)
        return [self._product(x, layer, "none") for layer in layers]

    def swiglu(self, x: Tensor, gate: nn.Linear, up: nn.Linear, norm: NormLayer | None = None) -> Tensor:
        """See `Ops`; silu and product are part of the matrix products."""
        x = x if norm is None else norm(x)
        gated = self._product(x, gate, "swish")
        mixed: Tensor = torch.ops.mkldnn._linear_pointwise.binary(x, gated, self._matrices[up], up.bias, "mul")  # noqa: SLF001
        return mixed

    def _product(self, x: Tensor, layer: nn.Linear, after: str) -> Tensor:
        matrix = self._matrices[layer]
        product: Tensor = torch.ops.mkldnn._linear_pointwise(x, matrix, layer.bias, after, [], "")  # noqa: SLF001
        return product


def is_packable(model: Decoder) -> bool:
    """Whether oneDNN supports the dtype and device of a decoder's layers, and they go through `Ops`."""
    layers = _layers(model)
    served = all(layer.weight.device.type == "cpu" and layer.weight.dtype in _DTYPES for layer in layers)
    return bool(layers) and served and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def pack_ops(model: Decoder) -> Ops:
    """Return packed operations of a decoder's blocks, or torch's own where they are not supported."""
    return PackedOps(_layers(model)) if is_packable(model) else TORCH


def _layers(model: Decoder) -> list[nn.Linear]:
    head = model.output_matrix
    return [part for part in model.modules() if isinstance(part, nn.Linear) and part.weight is not head]
