"""What a layer computes beside attention, as a seam: torch's own operations, or an engine's faster ones.

Given to a call of the decoder, never to the module. Whoever replaces them keeps the maths: sums in float32 or wider,
the model's dtype in and out. Knows nothing about layers' order, caches or attention.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor, nn
from torch.nn import functional

from shared.lm.rope import Rotation, rotate

__all__ = ["TORCH", "Normed", "Ops"]


class Normed(Protocol):
    """RMSNorm as a module: x / sqrt(mean x² + eps) · (offset + weight)."""

    weight: nn.Parameter
    eps: float
    offset: float

    def __call__(self, x: Tensor) -> Tensor:
        """Normalise the last axis."""
        ...


class Ops(Protocol):
    """The operations. x is [B,T,D] unless said otherwise."""

    def norm(self, x: Tensor, how: Normed) -> Tensor:
        """Normalise the last axis of x [...,D]."""
        ...

    def products(self, x: Tensor, layers: Sequence[nn.Linear], norm: Normed | None = None) -> list[Tensor]:
        """One x, normalised first where a norm is given, through several linear layers: [B,T,out] each."""
        ...

    def gate_up(self, x: Tensor, gate: nn.Linear, up: nn.Linear, norm: Normed | None = None) -> Tensor:
        """silu(gate x) · (up x), x normalised first where a norm is given."""
        ...

    def rotate(self, q: Tensor, k: Tensor, turn: Rotation) -> tuple[Tensor, Tensor]:
        """Turn the heads q [B,T,H,d] and k [B,T,G,d]."""
        ...

    def logits(self, x: Tensor, matrix: Tensor) -> Tensor:
        """Rows of x against the rows of the output matrix [V,D]: [B,T,V]."""
        ...


class _Torch:
    def norm(self, x: Tensor, how: Normed) -> Tensor:
        return how(x)

    def products(self, x: Tensor, layers: Sequence[nn.Linear], norm: Normed | None = None) -> list[Tensor]:
        x = x if norm is None else norm(x)
        return [layer(x) for layer in layers]

    def gate_up(self, x: Tensor, gate: nn.Linear, up: nn.Linear, norm: Normed | None = None) -> Tensor:
        x = x if norm is None else norm(x)
        mixed: Tensor = functional.silu(gate(x)) * up(x)
        return mixed

    def rotate(self, q: Tensor, k: Tensor, turn: Rotation) -> tuple[Tensor, Tensor]:
        return rotate(q, turn), rotate(k, turn)

    def logits(self, x: Tensor, matrix: Tensor) -> Tensor:
        return functional.linear(x, matrix)


TORCH: Ops = _Torch()
"""Torch's operations, differentiable, for any dtype and device."""
