"""Decoder-layer operations on a GPU, or in Triton's interpreter: norm, rotation and gate in one launch each.

Whole matrices are left to torch; few-bit ones are read as they are packed, up to a few hundred rows. Imported only
where Triton is installed. Knows nothing about other back ends.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType

import torch
import triton
import triton.language as tl
from torch import Tensor, nn
from torch.nn import functional

from services.llm_longctx.kernels.device.cards import GpuCard
from services.llm_longctx.kernels.device.launch import Launch, Variant, power_of_two
from services.llm_longctx.kernels.device.shapes import DECODERS, MODELS
from services.llm_longctx.kernels.fp8_linear import Fp8Matrix
from services.llm_longctx.kernels.fp8_linear.triton import multiply as multiply_fp8
from services.llm_longctx.kernels.quantized_linear import PackedMatrix, SmallMatrix
from services.llm_longctx.kernels.quantized_linear.triton import multiply as multiply_packed
from shared.lm.ops import NormLayer
from shared.lm.rope import Rotation

FEW = 256
"""Rows up to which a few-bit matrix is read; more rows are faster with the widened one."""

_BLOCK = 2048


class TritonOps:
    """`shared.lm.ops.Ops`; the residual stream is float32, as on a CPU, so that near ties do not turn over."""

    def __init__(
        self, packed: Mapping[nn.Linear, SmallMatrix] = MappingProxyType({}), head: SmallMatrix | None = None
    ) -> None:
        """Take the few-bit matrices of layers, and of the logits, which stand in for their weights."""
        self._packed, self._head = packed, head

    def widen(self, x: Tensor) -> Tensor:
        """See `Ops`."""
        return x.float()

    def norm(self, x: Tensor, how: NormLayer) -> Tensor:
        """See `Ops`."""
        return normalize(x, how.weight, how.eps, how.offset)

    def products(
        self, x: Tensor, layers: Sequence[nn.Linear], norm: NormLayer | None = None, *, added: bool = False
    ) -> list[Tensor]:
        """See `Ops`."""
        x = x if norm is None else self.norm(x, norm)
        if self._has_few_bits(x, layers):
            return multiply(x, [(self._packed[layer], layer.bias) for layer in layers])
        return [layer(x) for layer in layers]

    def swiglu(self, x: Tensor, gate: nn.Linear, up: nn.Linear, norm: NormLayer | None = None) -> Tensor:
        """See `Ops`."""
        x = x if norm is None else self.norm(x, norm)
        if self._has_few_bits(x, (gate, up)):
            return multiply(x, [(self._packed[layer], layer.bias) for layer in (gate, up)], gated=True)[0]
        return open_gate(gate(x), up(x))

    def rotate(self, q: Tensor, k: Tensor, turn: Rotation) -> tuple[Tensor, Tensor]:
        """See `Ops`."""
        return rotate(q, k, turn)

    def logits(self, x: Tensor, matrix: Tensor) -> Tensor:
        """See `Ops`."""
        if self._head is not None and _has_few_rows(x):
            return multiply(x, [(self._head, None)])[0]
        return functional.linear(x, matrix)

    def _has_few_bits(self, x: Tensor, layers: Sequence[nn.Linear]) -> bool:
        return _has_few_rows(x) and all(layer in self._packed for layer in layers)


def multiply(x: Tensor, layers: Sequence[tuple[SmallMatrix, Tensor | None]], *, gated: bool = False) -> list[Tensor]:
    """Rows of x [...,columns] times matrices of one format: [...,rows] each; see `quantized_linear.multiply`."""
    fp8 = [(matrix, bias) for matrix, bias in layers if isinstance(matrix, Fp8Matrix)]
    if fp8:
        return multiply_fp8(x, fp8, gated=gated)
    return multiply_packed(x, [(one, bias) for one, bias in layers if isinstance(one, PackedMatrix)], gated=gated)


def _has_few_rows(x: Tensor) -> bool:
    return x.numel() <= FEW * x.shape[-1]


def normalize(x: Tensor, weight: Tensor, eps: float, offset: float) -> Tensor:
    """RMSNorm of the last axis of x, in the weight's dtype."""
    x = x.contiguous()
    out = torch.empty_like(x, dtype=weight.dtype)
    D = x.shape[-1]
    if x.numel():
        _norm_launch(D)((x.numel() // D,), x, weight, out, eps, offset)
    return out


def rotate(q: Tensor, k: Tensor, turn: Rotation) -> tuple[Tensor, Tensor]:
    """Rotate the heads q [B,T,H,d] and k [B,T,G,d] by (cos, signed sin) [B|1,T,1,d]."""
    q, k, cos, sin = (x.contiguous() for x in (q, k, *turn))
    (B, T, H, d), G = q.shape, k.shape[2]
    turned = torch.empty_like(q), torch.empty_like(k)
    if B * T:
        launch = _rotate_launch(H, G, d)
        grid = B * T, triton.cdiv(H + G, int(str(launch.constants["HEADS"])))
        launch(grid, q, k, cos, sin, *turned, cos.numel() // d)
    return turned


def open_gate(opening: Tensor, opened: Tensor) -> Tensor:
    """silu(opening) · opened, element by element."""
    opening, opened = opening.contiguous(), opened.contiguous()
    out = torch.empty_like(opening)
    if n := out.numel():
        Launch(_open_gate, {"BLOCK": _BLOCK})((triton.cdiv(n, _BLOCK),), opening, opened, out, n)
    return out


def _norm_launch(D: int) -> Launch:
    wide = power_of_two(D)
    return Launch(_norm, {"D": D, "WIDE": wide}, min(max(wide // 1024, 1), 8))


def _rotate_launch(H: int, G: int, d: int) -> Launch:
    half = power_of_two(d // 2)
    heads = min(power_of_two(H + G), max(2048 // half, 1))
    return Launch(_rotate, {"H": H, "G": G, "D": d, "HALF": half, "HEADS": heads}, 4)


def variants(card: GpuCard) -> Iterator[Variant]:
    """Yield norm and rotation of the served decoders, and the gate."""
    stream = {"x": "*fp32", "weight": "*bf16", "out": "*bf16", "eps": "fp32", "offset": "fp32"}
    turns = dict.fromkeys(("q", "k", "cos", "sin", "q_out", "k_out"), "*bf16")
    for model in MODELS:
        yield Variant(
            "decoder_ops", f"norm, {model.name}", _norm_launch(model.width), stream, matrix=False, copies=False
        )
    for name, group, d in DECODERS:
        launch = _rotate_launch(8 * group, 8, d)
        yield Variant("decoder_ops", f"rotation, {name}", launch, turns, matrix=False, copies=False)
    gated = dict.fromkeys(("opening", "opened", "out"), "*bf16")
    launch = Launch(_open_gate, {"BLOCK": _BLOCK})
    yield Variant("decoder_ops", "gate", launch, gated, frozenset(("n",)), matrix=False, copies=False)


@triton.jit
def _norm(x, weight, out, eps, offset, D: tl.constexpr, WIDE: tl.constexpr):
    row, d = tl.program_id(0).to(tl.int64), tl.arange(0, WIDE)
    held = tl.load(x + row * D + d, d < D, 0.0).to(tl.float32)
    by = tl.rsqrt(tl.sum(held * held, 0) / D + eps)
    scale = tl.load(weight + d, d < D, 0.0).to(tl.float32) + offset
    tl.store(out + row * D + d, (held * by * scale).to(out.dtype.element_ty), d < D)


@triton.jit
def _rotate(q, k, cos, sin, q_out, k_out, turns,
            H: tl.constexpr, G: tl.constexpr, D: tl.constexpr, HALF: tl.constexpr, HEADS: tl.constexpr):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    head, i = tl.program_id(1) * HEADS + tl.arange(0, HEADS), tl.arange(0, HALF)
    near: tl.constexpr = D // 2
    in_q = (head < H)[:, None] & (i < near)[None, :]
    in_k = ((head >= H) & (head < H + G))[:, None] & (i < near)[None, :]
    at_q = (token * H + head)[:, None] * D + i[None, :]
    at_k = (token * G + head - H)[:, None] * D + i[None, :]
    first = tl.load(q + at_q, in_q, 0.0) + tl.load(k + at_k, in_k, 0.0)
    second = tl.load(q + at_q + near, in_q, 0.0) + tl.load(k + at_k + near, in_k, 0.0)
    turn = token % turns * D + i
    cos_1, cos_2 = tl.load(cos + turn, i < near, 0.0), tl.load(cos + turn + near, i < near, 0.0)
    sin_1, sin_2 = tl.load(sin + turn, i < near, 0.0), tl.load(sin + turn + near, i < near, 0.0)
    first, second = first.to(tl.float32), second.to(tl.float32)
    one = first * cos_1.to(tl.float32)[None, :] + second * sin_1.to(tl.float32)[None, :]
    two = second * cos_2.to(tl.float32)[None, :] + first * sin_2.to(tl.float32)[None, :]
    kind = q_out.dtype.element_ty
    tl.store(q_out + at_q, one.to(kind), in_q)
    tl.store(q_out + at_q + near, two.to(kind), in_q)
    tl.store(k_out + at_k, one.to(kind), in_k)
    tl.store(k_out + at_k + near, two.to(kind), in_k)


@triton.jit
def _open_gate(opening, opened, out, n, BLOCK: tl.constexpr):
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    first = tl.load(opening + i, i < n, 0.0).to(tl.float32)
    second = tl.load(opened + i, i < n, 0.0).to(tl.float32)
    tl.store(out + i, (first * tl.sigmoid(tl.maximum(first, -80.0)) * second).to(out.dtype.element_ty), i < n)
