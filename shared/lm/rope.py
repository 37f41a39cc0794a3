"""Rotary position embedding in the half-split pairing: entry i rotates with entry i + d/2.

Angles are float32 whatever the model's dtype, as in the official models. Knows nothing about heads, caches or layers.
"""

import math
from functools import lru_cache

import torch
from torch import Tensor

from shared.lm.config import DecoderConfig, RopeScaling
from shared.lm.host_transfer import to_device

Rotation = tuple[Tensor, Tensor]
"""cos and signed sin, each [B|1, T, 1, d]: the sine's first half is negated, so that one roll swaps the pairs."""


@lru_cache(maxsize=64)
def frequencies(config: DecoderConfig, device: torch.device | str = "cpu") -> Tensor:
    """Return the angle per position of each pair, θ_i = base^(−2i/d), stretched as the config says: [d/2] float32.

    They are computed on a CPU, whose powers official models take, and sent to a device once.
    """
    theta = _base(config.rope_theta, config.head_dim)
    return to_device(theta if config.rope_scaling is None else _stretch(theta, config.rope_scaling), device)


@lru_cache(maxsize=64)
def local_frequencies(config: DecoderConfig, device: torch.device | str = "cpu") -> Tensor:
    """Return the angles of layers with a sliding window: their own base, never stretched."""
    return to_device(_base(config.local_theta, config.head_dim), device)


def _base(theta: float, d: int) -> Tensor:
    return 1.0 / (theta ** (torch.arange(0, d, 2, dtype=torch.int64, device="cpu").float() / d))


def _stretch(theta: Tensor, how: RopeScaling) -> Tensor:
    if how.kind == "linear":
        return theta / how.factor
    if how.kind == "table":
        return theta / torch.tensor(how.table, dtype=torch.float32, device="cpu")
    wavelength = 2 * math.pi / theta
    blend = ((how.original / wavelength - how.low) / (how.high - how.low)).clamp(0, 1)
    return (1 - blend) * theta / how.factor + blend * theta


def rotation(theta: Tensor, positions: Tensor, dtype: torch.dtype) -> Rotation:
    """Return the rotation at `positions` ([T] or [B,T]) for frequencies `theta` [d/2]."""
    angles = positions[..., None].float() * theta
    cos, sin = angles.cos().to(dtype), angles.sin().to(dtype)
    if positions.dim() == 1:
        cos, sin = cos[None], sin[None]
    return torch.cat((cos, cos), -1)[:, :, None], torch.cat((-sin, sin), -1)[:, :, None]


def rotate(x: Tensor, turn: Rotation) -> Tensor:
    """Rotate the heads `x` [B,T,heads,d]."""
    cos, sin = turn
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, -1), sin)
