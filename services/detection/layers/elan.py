"""Blocks that aggregate what several depths see (ELAN and its re-parameterised and pooled forms, YOLOv9).

Knows how channels are split and joined, and the key names (`cv1` … `cv5`, `m`); knows no network.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from services.detection.layers.conv import Conv, RepConv


class Elan(nn.Module):
    """ELAN1: one half passes, the other goes through two 3x3 convolutions; all four stages are joined.

    The first stage has `middle` channels, split in halves, each further one `branch`.
    """

    def __init__(self, inputs: int, outputs: int, middle: int, branch: int) -> None:
        super().__init__()
        self.cv1 = Conv(inputs, middle)
        self.cv2 = Conv(middle // 2, branch, 3)
        self.cv3 = Conv(branch, branch, 3)
        self.cv4 = Conv(middle + 2 * branch, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """(n, inputs, h, w) → (n, outputs, h, w)."""
        passed, b = self.cv1(x).chunk(2, dim=1)
        c = self.cv2(b)
        made: Tensor = self.cv4(torch.cat([passed, b, c, self.cv3(c)], dim=1))
        return made


class RepBottleneck(nn.Module):
    """RepNBottleneck: two 3x3 convolutions, the first re-parameterised, around a shortcut."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.cv1 = RepConv(channels, channels)
        self.cv2 = Conv(channels, channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        """(n, c, h, w) → the same shape."""
        made: Tensor = x + self.cv2(self.cv1(x))
        return made


class RepCsp(nn.Module):
    """RepNCSP: `depth` bottlenecks next to a 1x1 shortcut, at half of the channels."""

    def __init__(self, inputs: int, outputs: int, depth: int) -> None:
        super().__init__()
        half = outputs // 2
        self.cv1 = Conv(inputs, half)
        self.cv2 = Conv(inputs, half)
        self.cv3 = Conv(2 * half, outputs)
        self.m = nn.Sequential(*(RepBottleneck(half) for _ in range(depth)))

    def forward(self, x: Tensor) -> Tensor:
        """(n, inputs, h, w) → (n, outputs, h, w)."""
        made: Tensor = self.cv3(torch.cat([self.m(self.cv1(x)), self.cv2(x)], dim=1))
        return made


class RepElan(nn.Module):
    """RepNCSPELAN4: ELAN whose stages are RepNCSP, of `depth` bottlenecks each, followed by a 3x3 convolution.

    The first stage has `middle` channels, split in halves, each further one `branch`.
    """

    def __init__(self, inputs: int, outputs: int, middle: int, branch: int, depth: int = 3) -> None:
        super().__init__()
        self.cv1 = Conv(inputs, middle)
        self.cv2 = nn.Sequential(RepCsp(middle // 2, branch, depth), Conv(branch, branch, 3))
        self.cv3 = nn.Sequential(RepCsp(branch, branch, depth), Conv(branch, branch, 3))
        self.cv4 = Conv(middle + 2 * branch, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """(n, inputs, h, w) → (n, outputs, h, w)."""
        passed, b = self.cv1(x).chunk(2, dim=1)
        c = self.cv2(b)
        made: Tensor = self.cv4(torch.cat([passed, b, c, self.cv3(c)], dim=1))
        return made


class SppElan(nn.Module):
    """SPPELAN: what three chained 5x5 max-pools see, joined: fields of 5, 9 and 13 pixels."""

    def __init__(self, inputs: int, outputs: int, middle: int) -> None:
        super().__init__()
        self.cv1 = Conv(inputs, middle)
        self.cv5 = Conv(4 * middle, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """(n, inputs, h, w) → (n, outputs, h, w)."""
        stages = [self.cv1(x)]
        for _ in range(3):
            stages.append(F.max_pool2d(stages[-1], 5, stride=1, padding=2))
        made: Tensor = self.cv5(torch.cat(stages, dim=1))
        return made
