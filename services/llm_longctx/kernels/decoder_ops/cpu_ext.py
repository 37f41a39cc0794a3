"""Decoder-layer operations by the C++ kernels next to this file, float32 or bfloat16 on a CPU, without gradients.

Few rows are multiplied by kernels that read a matrix once, more by tiles where the processor has them; the rest is left
to torch, whose products are faster there. Many rows are multiplied with a layer's few-bit matrix, if it has one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

import torch
from torch import Tensor, nn
from torch.nn import functional

from services.llm_longctx.kernels.native import bindings
from services.llm_longctx.kernels.quantized_linear import PackedMatrix
from services.llm_longctx.kernels.quantized_linear import multiply as multiply_packed
from shared.lm.ops import NormLayer
from shared.lm.rope import Rotation

FEW = 16
"""Rows up to which reading the matrix is what a product costs."""

MANY = 128
"""Rows up to which bfloat16 tiles are faster than torch, which lays each matrix out anew."""

LONG = 256
"""Rows from which on few-bit matrices are taken. Fewer are read with the weights widened, which rounds less: little
time is to be won there, and near ties of short prompts are what people see."""

SIDE = 32
"""Tiles need matrices whose sides are multiples of this."""


class NativeOps:
    """`shared.lm.ops.Ops`; a row's result does not depend on how many others there are, up to `FEW`, or in tiles.

    The residual stream is float32 whatever the matrices are, as in decode steps: it adds up twice per layer, and what
    bfloat16 loses there turns near ties over.
    """

    def __init__(self, packed: Mapping[nn.Linear, PackedMatrix] = MappingProxyType({})) -> None:
        """Take the few-bit matrices of layers, which stand in for their weights."""
        self._packed = packed

    def widen(self, x: Tensor) -> Tensor:
        """See `Ops`."""
        return x.float()

    def norm(self, x: Tensor, how: NormLayer) -> Tensor:
        """See `Ops`."""
        x = x.contiguous()
        out = torch.empty_like(x, dtype=how.weight.dtype)
        bindings.norm(x, how.weight, out, how.eps, how.offset)
        return out

    def products(self, x: Tensor, layers: Sequence[nn.Linear], norm: NormLayer | None = None) -> list[Tensor]:
        """See `Ops`."""
        x, norm = self._narrow(x, norm)
        if self._has_few_bits(x, layers):
            return self._multiply_packed(x, layers, norm)
        if not _is_faster_here(x, [layer.weight for layer in layers]):
            x = x if norm is None else self.norm(x, norm)
            return [layer(x) for layer in layers]
        return _products(x, [(layer.weight, layer.bias) for layer in layers], norm)

    def swiglu(self, x: Tensor, gate: nn.Linear, up: nn.Linear, norm: NormLayer | None = None) -> Tensor:
        """See `Ops`."""
        x, norm = self._narrow(x, norm)
        if self._has_few_bits(x, (gate, up)):
            return self._multiply_packed(x, (gate, up), norm, gated=True)[0]
        if not _is_faster_here(x, [gate.weight, up.weight]):
            x = x if norm is None else self.norm(x, norm)
            gated: Tensor = gate(x)
            bindings.gate(gated, up(x), gated)
            return gated
        return _products(x, [(gate.weight, gate.bias), (up.weight, up.bias)], norm, gated=True)[0]

    def rotate(self, q: Tensor, k: Tensor, turn: Rotation) -> tuple[Tensor, Tensor]:
        """See `Ops`."""
        q, k, (B, T, _, d) = q.contiguous(), k.contiguous(), q.shape
        turned = torch.empty_like(q), torch.empty_like(k)
        # One row that all share stays a view without strides, which C++ would read beyond.
        cos, sin = (table.expand(B, T, 1, d).reshape(B * T, d).contiguous() for table in turn)
        bindings.rotate((q, k), cos, sin, turned)
        return turned

    def logits(self, x: Tensor, matrix: Tensor) -> Tensor:
        """See `Ops`; of few rows in float32, because logits of a near tie are equal in bfloat16."""
        if not x.numel() or not _is_faster_here(x, [matrix]):
            return functional.linear(x, matrix)
        return _products(x, [(matrix, None)], wide=x.numel() // x.shape[-1] <= FEW)[0]

    def _has_few_bits(self, x: Tensor, layers: Sequence[nn.Linear]) -> bool:
        """Whether layers are multiplied in few bits: where rows are many, and there are no tiles, which are faster."""
        has_tiles = x.dtype == torch.bfloat16 and bindings.has_tiles()
        return x.numel() // x.shape[-1] >= LONG and not has_tiles and all(layer in self._packed for layer in layers)

    def _multiply_packed(
        self, x: Tensor, layers: Sequence[nn.Linear], norm: NormLayer | None, *, gated: bool = False
    ) -> list[Tensor]:
        x = x if norm is None else self.norm(x, norm)
        return multiply_packed(x, [(self._packed[layer], layer.bias) for layer in layers], gated=gated)

    def _narrow(self, x: Tensor, norm: NormLayer | None) -> tuple[Tensor, NormLayer | None]:
        """A stream that is wider than the norm's weight is normed at once; products take one dtype."""
        return (x, norm) if norm is None or norm.weight.dtype == x.dtype else (self.norm(x, norm), None)


def _is_faster_here(x: Tensor, matrices: Sequence[Tensor]) -> bool:
    """Whether our kernels are the faster ones for so many rows."""
    rows = x.numel() // x.shape[-1]
    if rows <= FEW or rows > MANY or x.dtype != torch.bfloat16:
        return rows <= FEW
    return bindings.has_tiles() and not any(side % SIDE for matrix in matrices for side in matrix.shape)


def _products(
    x: Tensor,
    layers: Sequence[tuple[Tensor, Tensor | None]],
    norm: NormLayer | None = None,
    *,
    gated: bool = False,
    wide: bool = False,
) -> list[Tensor]:
    x, K = x.contiguous(), x.shape[-1]
    outs: list[Tensor] = []
    words: list[int] = []
    for weight, bias in layers:
        rows, to = weight.shape[0], 0
        if not (gated and outs):  # what a gate opens has no output of its own
            outs.append(x.new_empty((*x.shape[:-1], rows), dtype=torch.float32 if wide else x.dtype))
            to = outs[-1].data_ptr()
        words += weight.data_ptr(), 0 if bias is None else bias.data_ptr(), to, rows
    how = None if norm is None else (norm.weight, norm.eps, norm.offset)
    bindings.multiply(x, words, len(layers), (x.numel() // K, K), how, gated=gated, wide=wide)
    return outs
