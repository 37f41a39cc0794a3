"""The anchor-free detection head: per level a tower for boxes (16 bins a side) and one for classes.

Knows how wide the towers are and how their biases start; decoding their maps is `services.detection.boxes.geometry`'.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from services.detection.layers.conv import Conv

BINS = 16
"""Bins of the distribution of each side's distance."""


class Integral(nn.Module):
    """The constant 0 … bins-1 that checkpoints of this family carry; `decode` knows it without being told."""

    def __init__(self, bins: int = BINS) -> None:
        super().__init__()
        self.conv = nn.Conv2d(bins, 1, 1, bias=False).requires_grad_(False)
        self.conv.weight.data[:] = torch.arange(bins, dtype=torch.float32).view(1, bins, 1, 1)


def towers(channels: Sequence[int], classes: int, strides: Sequence[int]) -> tuple[nn.ModuleList, nn.ModuleList]:
    """Box towers and class towers, one per level, finest first, with biases that expect few objects.

    `strides` are the pixels per cell of each level; a bias expects five objects on a picture of 640.
    """
    boxes = -(-max(channels[0] // 4, 4 * BINS, 16) // 4) * 4
    wide = max(channels[0], min(2 * classes, 128))
    box, kind = nn.ModuleList(), nn.ModuleList()
    for width, stride in zip(channels, strides, strict=True):
        last = nn.Conv2d(boxes, 4 * BINS, 1, groups=4)
        nn.init.constant_(_bias(last), 1.0)
        box.append(nn.Sequential(Conv(width, boxes, 3), Conv(boxes, boxes, 3, groups=4), last))
        last = nn.Conv2d(wide, classes, 1)
        nn.init.constant_(_bias(last), math.log(5 / classes / (640 / stride) ** 2))
        kind.append(nn.Sequential(Conv(width, wide, 3), Conv(wide, wide, 3), last))
    return box, kind


def raw_maps(box: nn.ModuleList, kind: nn.ModuleList, levels: Sequence[Tensor]) -> list[Tensor]:
    """The raw map (n, 64 + classes, h, w) of each level, box bins first."""
    return [torch.cat([b(x), k(x)], dim=1) for b, k, x in zip(box, kind, levels, strict=True)]


def _bias(conv: nn.Conv2d) -> Tensor:
    if conv.bias is None:
        raise TypeError("a tower ends in a convolution with a bias")
    return conv.bias
