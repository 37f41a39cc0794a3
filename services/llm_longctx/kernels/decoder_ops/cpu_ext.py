"""Decoder-layer operations by the C++ kernels next to this file, float32 or bfloat16 on a CPU, without gradients.

A layer's few-bit matrix, if it has one, is what rows are multiplied with, however many they are: prompts are read with
the arithmetic of decode steps, and the widened weights stay on the disk. Whole matrices are multiplied by kernels that
read them once where rows are few, and by tiles where the processor has them; the rest is left to torch, whose products
are faster there.
"""

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

SIDE = 32
"""Tiles need matrices whose sides are multiples of this."""


class NativeOps:
    """`shared.lm.ops.Ops`; a row's result does not depend on how many others there are, up to `FEW`, or in tiles.

    The residual stream is float32 whatever the matrices are, as in decode steps: it adds up twice per layer, and what
    bfloat16 loses there turns near ties over.
    """

    def __init__(
        self, packed: Mapping[nn.Linear, PackedMatrix] = MappingProxyType({}), head: PackedMatrix | None = None
    ) -> None:
        """Take the few-bit matrices of layers, and of the logits, which stand in for their weights."""
        self._packed, self._head = packed, head

    def widen(self, x: Tensor) -> Tensor:
        """See `Ops`."""
        return x.float()

    def norm(self, x: Tensor, how: NormLayer) -> Tensor:
        """See `Ops`."""
        x = x.contiguous()
        out = torch.empty_like(x, dtype=how.weight.dtype)
        bindings.norm(x, how.weight, out, how.eps, how.offset)
        return out

    def products(
        self, x: Tensor, layers: Sequence[nn.Linear], norm: NormLayer | None = None, *, added: bool = False
    ) -> list[Tensor]:
        """See `Ops`; what is added to the stream is float32 like it where our kernels compute it."""
        if self._has_few_bits(x, layers):
            return self._multiply_packed(x, layers, norm, wide=added)
        x, norm = self._narrow(x, norm)
        if not _is_faster_here(x, [layer.weight for layer in layers]):
            x = x if norm is None else self.norm(x, norm)
            return [layer(x) for layer in layers]
        wide = added and x.numel() // x.shape[-1] <= FEW
        return _products(x, [(layer.weight, layer.bias) for layer in layers], norm, wide=wide)

    def swiglu(self, x: Tensor, gate: nn.Linear, up: nn.Linear, norm: NormLayer | None = None) -> Tensor:
        """See `Ops`."""
        if self._has_few_bits(x, (gate, up)):
            return self._multiply_packed(x, (gate, up), norm, gated=True)[0]
        x, norm = self._narrow(x, norm)
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
        few = x.numel() <= FEW * x.shape[-1]
        if self._head is not None and (few or not self._has_tiles(x)):
            return multiply_packed(x, [(self._head, None)], wide=few)[0]
        if not x.numel() or not _is_faster_here(x, [matrix]):
            return functional.linear(x, matrix)
        return _products(x, [(matrix, None)], wide=few)[0]

    def _has_few_bits(self, x: Tensor, layers: Sequence[nn.Linear]) -> bool:
        """Whether layers are multiplied in few bits: all have few, and no tiles multiply so many rows faster."""
        if any(layer not in self._packed for layer in layers):
            return False
        return x.numel() <= FEW * x.shape[-1] or not self._has_tiles(layers[0].weight)

    @staticmethod
    def _has_tiles(like: Tensor) -> bool:
        return like.dtype == torch.bfloat16 and bindings.has_tiles()

    def _multiply_packed(
        self, x: Tensor, layers: Sequence[nn.Linear], norm: NormLayer | None, *, gated: bool = False, wide: bool = False
    ) -> list[Tensor]:
        how = None if norm is None else (norm.weight, norm.eps, norm.offset)
        return multiply_packed(x, [(self._packed[one], one.bias) for one in layers], how, gated=gated, wide=wide)

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
