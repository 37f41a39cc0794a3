"""Blocks of YOLO11 and YOLOv12: cross-stage bottlenecks, and attention within areas of a map.

Knows how channels are split and joined, and the key names; knows no network.
"""

import torch
from torch import Tensor, nn

from services.detection.layers.conv import Conv

HEAD = 32
"""Channels of one head."""


class Bottleneck(nn.Module):
    """Two 3x3 convolutions around a shortcut, with the share `e` of the channels in between."""

    def __init__(self, channels: int, e: float = 0.5) -> None:
        super().__init__()
        middle = int(channels * e)
        self.cv1 = Conv(channels, middle, 3)
        self.cv2 = Conv(middle, channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        """(n, c, h, w) → the same shape."""
        made: Tensor = x + self.cv2(self.cv1(x))
        return made


class ThreeConv(nn.Module):
    """C3k: two bottlenecks next to a 1x1 shortcut, at half of the channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.cv1 = Conv(channels, half)
        self.cv2 = Conv(channels, half)
        self.cv3 = Conv(2 * half, channels)
        self.m = nn.Sequential(Bottleneck(half, 1.0), Bottleneck(half, 1.0))

    def forward(self, x: Tensor) -> Tensor:
        """(n, c, h, w) → the same shape."""
        made: Tensor = self.cv3(torch.cat((self.m(self.cv1(x)), self.cv2(x)), dim=1))
        return made


class CrossStage(nn.Module):
    """C3k2: one half passes, one goes through a block (C3k if `deep`); both and what came of it are joined.

    `e` is the share of the output channels in between.
    """

    def __init__(self, inputs: int, outputs: int, *, deep: bool = False, e: float = 0.5) -> None:
        super().__init__()
        middle = int(outputs * e)
        self.cv1 = Conv(inputs, 2 * middle)
        self.cv2 = Conv(3 * middle, outputs)
        self.m = nn.ModuleList([ThreeConv(middle) if deep else Bottleneck(middle)])

    def forward(self, x: Tensor) -> Tensor:
        """(n, inputs, h, w) → (n, outputs, h, w)."""
        parts = list(self.cv1(x).chunk(2, dim=1))
        parts.extend(block(parts[-1]) for block in self.m)
        made: Tensor = self.cv2(torch.cat(parts, dim=1))
        return made


class AreaAttention(nn.Module):
    """Self-attention within `area` runs of tokens, with a 7x7 depthwise convolution as its sense of place."""

    def __init__(self, channels: int, area: int) -> None:
        super().__init__()
        self.heads, self.area = channels // HEAD, area
        self.qkv = Conv(channels, 3 * channels, active=False)
        self.proj = Conv(channels, channels, active=False)
        self.pe = Conv(channels, channels, 7, groups=channels, active=False)

    def forward(self, x: Tensor) -> Tensor:
        """(n, c, h, w) → the same shape; h·w must be a multiple of the number of areas."""
        n, c, h, w = x.shape
        # (n, heads, q|k|v, d, areas, tokens): the runs are stripes of whole rows wherever rows divide evenly.
        parts = self.qkv(x).reshape(n, self.heads, 3, HEAD, self.area, h * w // self.area)
        q, k, v = parts.permute(2, 0, 1, 4, 3, 5)
        weight = torch.softmax(q.transpose(-2, -1) @ k * HEAD**-0.5, dim=-1)
        attended = v @ weight.transpose(-2, -1)
        attended, values = (part.permute(0, 1, 3, 2, 4).reshape(n, c, h, w) for part in (attended, v))
        made: Tensor = self.proj(attended + self.pe(values))
        return made


class AreaBlock(nn.Module):
    """ABlock: attention and a small network, each around a shortcut."""

    def __init__(self, channels: int, area: int) -> None:
        super().__init__()
        self.attn = AreaAttention(channels, area)
        self.mlp = nn.Sequential(Conv(channels, 2 * channels), Conv(2 * channels, channels, active=False))

    def forward(self, x: Tensor) -> Tensor:
        """(n, c, h, w) → the same shape."""
        x = x + self.attn(x)
        made: Tensor = x + self.mlp(x)
        return made


class AreaElan(nn.Module):
    """A2C2f: a chain of stages whose every output is joined; stages are pairs of area blocks, or C3k.

    There are `depth` stages, whose attention has `area` areas; 0 means C3k stages.
    """

    def __init__(self, inputs: int, outputs: int, depth: int = 1, area: int = 0) -> None:
        super().__init__()
        half = outputs // 2
        self.cv1 = Conv(inputs, half)
        self.cv2 = Conv((1 + depth) * half, outputs)
        self.m = nn.ModuleList(
            nn.Sequential(AreaBlock(half, area), AreaBlock(half, area)) if area else ThreeConv(half)
            for _ in range(depth)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(n, inputs, h, w) → (n, outputs, h, w)."""
        parts = [self.cv1(x)]
        parts.extend(stage(parts[-1]) for stage in self.m)
        made: Tensor = self.cv2(torch.cat(parts, dim=1))
        return made
