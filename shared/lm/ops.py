"""Operations of a layer besides attention, replaceable per call: torch's own, or an engine's faster ones.

A replacement keeps the maths: sums in float32 or wider, the model's dtype out. The residual stream may be wider. Knows
nothing about layers' order, caches or attention.
"""

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor, nn
from torch.nn import functional

from shared.lm.rope import Rotation, rotate


class NormLayer(Protocol):
    """RMSNorm as a module: x / sqrt(mean x² + eps) · (offset + weight)."""

    weight: nn.Parameter
    eps: float
    offset: float

    def __call__(self, x: Tensor) -> Tensor:
        """Normalise the last axis."""


class Ops(Protocol):
    """The operations. x is [B,T,D] unless said otherwise; with a norm it may be a widened residual stream."""

    def widen(self, x: Tensor) -> Tensor:
        """The residual stream at its beginning, in the dtype that it keeps."""

    def norm(self, x: Tensor, how: NormLayer) -> Tensor:
        """Normalise the last axis of x [...,D]."""

    def products(
        self, x: Tensor, layers: Sequence[nn.Linear], norm: NormLayer | None = None, *, added: bool = False
    ) -> list[Tensor]:
        """Apply several linear layers to one x, normalised first where a norm is given: [B,T,out] each.

        Results that are `added` to the residual stream may be as wide as it is.
        """

    def swiglu(self, x: Tensor, gate: nn.Linear, up: nn.Linear, norm: NormLayer | None = None) -> Tensor:
        """Compute SwiGLU, silu(gate x) · (up x), x normalised first where a norm is given."""

    def rotate(self, q: Tensor, k: Tensor, turn: Rotation) -> tuple[Tensor, Tensor]:
        """Rotate the heads q [B,T,H,d] and k [B,T,G,d]."""

    def logits(self, x: Tensor, matrix: Tensor) -> Tensor:
        """Multiply rows of x by the output matrix [V,D]: [B,T,V]."""


class OpsAround(Ops):
    """Operations that hand on to others; a subclass changes some."""

    def __init__(self, inner: Ops) -> None:
        self._inner = inner

    def widen(self, x: Tensor) -> Tensor:
        return self._inner.widen(x)

    def norm(self, x: Tensor, how: NormLayer) -> Tensor:
        return self._inner.norm(x, how)

    def products(
        self, x: Tensor, layers: Sequence[nn.Linear], norm: NormLayer | None = None, *, added: bool = False
    ) -> list[Tensor]:
        return self._inner.products(x, layers, norm, added=added)

    def swiglu(self, x: Tensor, gate: nn.Linear, up: nn.Linear, norm: NormLayer | None = None) -> Tensor:
        return self._inner.swiglu(x, gate, up, norm)

    def rotate(self, q: Tensor, k: Tensor, turn: Rotation) -> tuple[Tensor, Tensor]:
        return self._inner.rotate(q, k, turn)

    def logits(self, x: Tensor, matrix: Tensor) -> Tensor:
        return self._inner.logits(x, matrix)


class _TorchOps:
    def widen(self, x: Tensor) -> Tensor:
        return x

    def norm(self, x: Tensor, how: NormLayer) -> Tensor:
        return how(x)

    def products(
        self, x: Tensor, layers: Sequence[nn.Linear], norm: NormLayer | None = None, *, added: bool = False
    ) -> list[Tensor]:
        x = x if norm is None else norm(x)
        return [layer(x) for layer in layers]

    def swiglu(self, x: Tensor, gate: nn.Linear, up: nn.Linear, norm: NormLayer | None = None) -> Tensor:
        x = x if norm is None else norm(x)
        mixed: Tensor = functional.silu(gate(x)) * up(x)
        return mixed

    def rotate(self, q: Tensor, k: Tensor, turn: Rotation) -> tuple[Tensor, Tensor]:
        return rotate(q, turn), rotate(k, turn)

    def logits(self, x: Tensor, matrix: Tensor) -> Tensor:
        return functional.linear(x, matrix)


TORCH: Ops = _TorchOps()
"""Torch's operations, differentiable, for any dtype and device."""
