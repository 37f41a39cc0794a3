"""The three attentions that PATNet puts next to a partial convolution: by channel, by place, and among places.

Knows the maths of each (PATNet, section 3) and nothing about stages. The table of relative positions depends on the
size of the map: it is built once per size.
"""

import math
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

EXACT = 20
"""Distances up to this have an entry of their own; farther ones share, on a logarithmic scale."""

FARTHEST = 40
"""The last entry; the table has as many again for negative distances, which never occur."""

_SMALLEST = 1e-12
"""Floor of a variance: the square root of 0 has no gradient."""


class ChannelGate(nn.Module):
    """PAT_ch: each channel is weighted by what mean and standard deviation of all channels say (SRM)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.cfc1 = nn.Conv2d(channels, channels, (1, 2), bias=False)
        self.bn = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        """(n, c, h, w) → (n, c, h, w)."""
        mean = x.mean(dim=(2, 3), keepdim=True)
        variance = (x - mean).square().sum(dim=(2, 3), keepdim=True) / (x.shape[2] * x.shape[3] - 1)
        style = torch.cat((mean, variance.clamp(min=_SMALLEST).sqrt()), dim=3)
        return x * F.hardsigmoid(self.bn(self.cfc1(style)))


class SpatialGate(nn.Module):
    """PAT_sp: half of the channels is weighted place by place, the other half mixed by a 1x1 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.conv = nn.Conv2d(half, half, 1, bias=False)
        self.conv_attn = nn.Conv2d(half, 1, 1, bias=False)
        self.norm = nn.BatchNorm2d(half)
        self.norm2 = nn.BatchNorm2d(half)

    def forward(self, x: Tensor) -> Tensor:
        """(n, c, h, w) → (n, c, h, w); the gated half comes first."""
        gated, mixed = x.chunk(2, dim=1)
        gated = self.norm(gated * F.hardsigmoid(self.conv_attn(gated)))
        return torch.cat((gated, self.conv(self.norm2(mixed))), dim=1)


class _RelativeBias(nn.Module):
    """A learned number per head and distance."""

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.lookup_table_bias = nn.Parameter(torch.empty(heads, 2 * FARTHEST + 1))
        nn.init.trunc_normal_(self.lookup_table_bias, std=0.02)

    def forward(self, height: int, width: int) -> Tensor:
        """(heads, t, t) for all pairs of the t = h·w places."""
        return self.lookup_table_bias[:, relative_index(int(height), int(width)).to(self.lookup_table_bias.device)]


class SpatialSelfAttention(nn.Module):
    """PAT_sf: multi-head self-attention among all places of a map, with a bias by their distance.

    `heads` divide the channels; `dropout` is of weights and of the projection, in training.
    """

    def __init__(self, channels: int, heads: int, dropout: float = 0.1) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(channels, 3 * channels, bias=False)
        self.proj = nn.Linear(channels, channels)
        self.rpe_k = _RelativeBias(heads)
        self.dropout = dropout

    def forward(self, x: Tensor, height: int, width: int) -> Tensor:
        """Tokens (n, t, c) in row-major order → (n, t, c)."""
        count, tokens, channels = x.shape
        q, k, v = self.qkv(x).reshape(count, tokens, 3, self.heads, channels // self.heads).permute(2, 0, 3, 1, 4)
        logits = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1) + self.rpe_k(height, width)
        weights = F.dropout(logits.softmax(dim=-1), self.dropout, self.training)
        mixed = (weights @ v).transpose(1, 2).reshape(count, tokens, channels)
        return F.dropout(self.proj(mixed), self.dropout, self.training)


@lru_cache(maxsize=64)
def relative_index(height: int, width: int) -> Tensor:
    """Entry of the bias table for each pair of places: int64 (t, t), t = h·w in row-major order."""
    # In NumPy: what is computed here must be a constant to whoever traces the network.
    rows, columns = np.divmod(np.arange(height * width), width)
    apart = np.rint(np.hypot(rows[:, None] - rows, columns[:, None] - columns))
    far = np.rint(EXACT + EXACT * np.log(np.maximum(apart, 1) / EXACT) / math.log(8))
    index = FARTHEST + np.where(apart <= EXACT, apart, far.clip(max=FARTHEST)).astype(np.int64)
    with torch.inference_mode(mode=False):  # kept longer than this call: a later one may need gradients
        return torch.from_numpy(index)
