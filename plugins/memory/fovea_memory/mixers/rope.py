"""Rotary positions for the mixers, which turn keys long after they were read: any shape before d, any positions.

Two pairings are in use: entry i with entry i + d/2 (LLaMA), and entry 2i with entry 2i + 1 (GPT of the landmark paper,
the routing port). Angles are float64: float32 blurs them far into a stream. Knows nothing about heads or caches.
"""

import torch
from torch import Tensor


def rotate_halves(x: Tensor, positions: Tensor) -> Tensor:
    """Turn the pairs (xᵢ, xᵢ₊d/2) of x [...,T,d] by position · 10⁴^(-2i/d); positions broadcast to [...,T]."""
    cos, sin = _waves(x, positions)
    a, b = x.chunk(2, -1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)


def rotate_pairs(x: Tensor, positions: Tensor) -> Tensor:
    """The same with the pairs (x₂ᵢ, x₂ᵢ₊₁)."""
    cos, sin = _waves(x, positions)
    a, b = x[..., 0::2], x[..., 1::2]
    return torch.stack((a * cos - b * sin, b * cos + a * sin), -1).flatten(-2)


def _waves(x: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
    """Cosine and sine [...,d/2] at positions [...], in x's dtype."""
    d = x.shape[-1]
    theta = 10000.0 ** (-torch.arange(0, d, 2, device=positions.device).float() / d)
    angles = positions[..., None].double() * theta
    return angles.cos().to(x.dtype), angles.sin().to(x.dtype)
