"""PSA: self-attention over the positions of half of the channels (YOLOv10's block, as YOLO9tr uses it).

Knows the maths and the key names; knows no network.
"""

import torch
from torch import Tensor, nn

from services.detection.layers.conv import Conv

HEAD = 64
"""Channels of one head, unless there are fewer in all."""


class SelfAttention(nn.Module):
    """Attention between all positions, with a depthwise convolution as its sense of place.

    Keys and queries have half the channels of values.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.heads = max(1, channels // HEAD)
        self.width = channels // self.heads
        self.key = self.width // 2
        self.qkv = Conv(channels, channels + 2 * self.key * self.heads, active=False)
        self.proj = Conv(channels, channels, active=False)
        self.pe = Conv(channels, channels, 3, groups=channels, active=False)

    def forward(self, x: Tensor) -> Tensor:
        """(n, c, h, w) → the same shape."""
        n, c, h, w = x.shape
        split = self.qkv(x).view(n, self.heads, 2 * self.key + self.width, h * w)
        q, k, v = split.split([self.key, self.key, self.width], dim=2)
        weight = torch.softmax(q.transpose(2, 3) @ k * self.key**-0.5, dim=-1)
        attended = (v @ weight.transpose(2, 3)).reshape(n, c, h, w)
        made: Tensor = self.proj(attended + self.pe(v.reshape(n, c, h, w)))
        return made


class PositionAttention(nn.Module):
    """PSA: half of the channels pass, the other half attend and go through a small network, around shortcuts."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.cv1 = Conv(channels, 2 * half)
        self.cv2 = Conv(2 * half, channels)
        self.attn = SelfAttention(half)
        self.ffn = nn.Sequential(Conv(half, 2 * half), Conv(2 * half, half, active=False))

    def forward(self, x: Tensor) -> Tensor:
        """(n, c, h, w) → the same shape."""
        passed, b = self.cv1(x).chunk(2, dim=1)
        b = b + self.attn(b)
        b = b + self.ffn(b)
        made: Tensor = self.cv2(torch.cat([passed, b], dim=1))
        return made
