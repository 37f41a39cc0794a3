"""A decoder's matrices laid out once as oneDNN reads them: for whoever reads much text with one model on a CPU.

Torch lays a matrix out anew in every product, which costs most where blocks are short. The price is a second copy of
the layers' matrices in memory. Knows linear layers; knows nothing about blocks, texts or attention.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from shared.lm.decoder import Decoder
from shared.lm.ops import TORCH, Normed, Ops
from shared.lm.rope import Rotation

__all__ = ["PackedOps", "fits", "pack_ops"]

ROWS = 64
"""Rows of a product that the layout is chosen for; others work, too."""

_DTYPES = {torch.float32, torch.bfloat16}


class PackedOps:
    """`shared.lm.ops.Ops` without gradients.

    In float32 a row's result does not depend on how many other rows there are. In bfloat16 its last bit may, where
    oneDNN multiplies in tiles (AMX).
    """

    def __init__(self, layers: Iterable[nn.Linear]) -> None:
        reorder = torch.ops.mkldnn._reorder_linear_weight  # noqa: SLF001  # what torch's own freezing calls; it has no other name
        self._matrices: dict[nn.Linear, Tensor] = {layer: reorder(layer.weight.detach(), ROWS) for layer in layers}

    def norm(self, x: Tensor, how: Normed) -> Tensor:
        """See `Ops`."""
        return TORCH.norm(x, how)

    def products(self, x: Tensor, layers: Sequence[nn.Linear], norm: Normed | None = None) -> list[Tensor]:
        """See `Ops`."""
        x = x if norm is None else norm(x)
        return [self._product(x, layer, "none") for layer in layers]

    def gate_up(self, x: Tensor, gate: nn.Linear, up: nn.Linear, norm: Normed | None = None) -> Tensor:
        """See `Ops`; silu and product are part of the matrix products."""
        x = x if norm is None else norm(x)
        closed = self._product(x, gate, "swish")
        mixed: Tensor = torch.ops.mkldnn._linear_pointwise.binary(x, closed, self._matrices[up], up.bias, "mul")  # noqa: SLF001
        return mixed

    def rotate(self, q: Tensor, k: Tensor, turn: Rotation) -> tuple[Tensor, Tensor]:
        """See `Ops`."""
        return TORCH.rotate(q, k, turn)

    def logits(self, x: Tensor, matrix: Tensor) -> Tensor:
        """See `Ops`."""
        return TORCH.logits(x, matrix)

    def _product(self, x: Tensor, layer: nn.Linear, after: str) -> Tensor:
        matrix = self._matrices[layer]
        found: Tensor = torch.ops.mkldnn._linear_pointwise(x, matrix, layer.bias, after, [], "")  # noqa: SLF001
        return found


def fits(model: Decoder) -> bool:
    """Whether oneDNN serves the dtype and device of a decoder's layers, and they are behind the seam."""
    layers = _layers(model)
    served = all(layer.weight.device.type == "cpu" and layer.weight.dtype in _DTYPES for layer in layers)
    return bool(layers) and served and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def pack_ops(model: Decoder) -> Ops:
    """Packed operations of a decoder's blocks, or torch's own where they don't fit."""
    return PackedOps(_layers(model)) if fits(model) else TORCH


def _layers(model: Decoder) -> list[nn.Linear]:
    head = model.output_matrix
    return [part for part in model.modules() if isinstance(part, nn.Linear) and part.weight is not head]
