"""Res2Net-50 v1b 26w4s: the backbone of PraNet and PraNet-V2.

Knows the layout of the official checkpoint, key for key, at any width; knows nothing about segmentation.
"""

import torch
from torch import Tensor, nn

EXPANSION = 4
"""Output channels of a block per plane."""

SCALE = 4
"""Groups into which a block splits its channels (the 4s of 26w4s)."""

PLANES = (64, 128, 256, 512)
"""Planes of `layer1` to `layer4` at width 1."""


class Bottle2neck(nn.Module):
    """A residual block whose 3x3 convolutions form a small ladder over four channel groups.

    The first block of a stage (`first`) has no ladder: each group is convolved alone and the last one is pooled,
    even where the stride is 1.
    """

    def __init__(self, inputs: int, planes: int, stride: int = 1, *, first: bool = False) -> None:
        super().__init__()
        width = planes * 26 // 64
        self.conv1 = nn.Conv2d(inputs, width * SCALE, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width * SCALE)
        self.convs = nn.ModuleList(_conv3x3(width, width, stride) for _ in range(SCALE - 1))
        self.bns = nn.ModuleList(nn.BatchNorm2d(width) for _ in range(SCALE - 1))
        self.conv3 = nn.Conv2d(width * SCALE, planes * EXPANSION, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(planes * EXPANSION)
        self.relu = nn.ReLU(inplace=True)
        self.pool = nn.AvgPool2d(3, stride, padding=1) if first else None
        self.downsample = _shortcut(inputs, planes * EXPANSION, stride) if first else None

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, inputs, h, w) to (n, 4·planes, h/stride, w/stride)."""
        groups = self.relu(self.bn1(self.conv1(x))).chunk(SCALE, dim=1)
        rungs: list[Tensor] = []
        for group, conv, bn in zip(groups[:-1], self.convs, self.bns, strict=True):
            rung = group if self.pool is not None or not rungs else group + rungs[-1]
            rungs.append(self.relu(bn(conv(rung))))
        rungs.append(groups[-1] if self.pool is None else self.pool(groups[-1]))
        residual = x if self.downsample is None else self.downsample(x)
        out: Tensor = self.relu(self.bn3(self.conv3(torch.cat(rungs, dim=1))) + residual)
        return out


class Res2Net(nn.Module):
    """Res2Net-50 v1b; a width of 1 gives the published network.

    The ImageNet head `fc` of the `classifier` is never used; official checkpoints carry it.
    """

    def __init__(self, width: float = 1.0, *, classifier: bool = True) -> None:
        super().__init__()
        half, full = int(32 * width), int(64 * width)
        self.conv1 = nn.Sequential(
            _conv3x3(3, half, 2),
            nn.BatchNorm2d(half),
            nn.ReLU(inplace=True),
            _conv3x3(half, half),
            nn.BatchNorm2d(half),
            nn.ReLU(inplace=True),
            _conv3x3(half, full),
        )
        self.bn1 = nn.BatchNorm2d(full)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        planes = [int(base * width) for base in PLANES]
        self.layer1 = _stage(full, planes[0], blocks=3, stride=1)
        self.layer2 = _stage(planes[0] * EXPANSION, planes[1], blocks=4, stride=2)
        self.layer3 = _stage(planes[1] * EXPANSION, planes[2], blocks=6, stride=2)
        self.layer4 = _stage(planes[2] * EXPANSION, planes[3], blocks=3, stride=2)
        self.channels = tuple(EXPANSION * count for count in planes)
        if classifier:
            self.fc = nn.Linear(self.channels[-1], 1000)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Features of `layer1` to `layer4` at 1/4, 1/8, 1/16 and 1/32 of the picture (n, 3, h, w)."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x1 = self.layer1(x)
        x2 = self.layer2(x1)
        x3 = self.layer3(x2)
        return x1, x2, x3, self.layer4(x3)


def _shortcut(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    """The residual path of a stage's first block: pooling instead of a strided convolution (the b of v1b)."""
    return nn.Sequential(
        nn.AvgPool2d(stride, stride, ceil_mode=True, count_include_pad=False),
        nn.Conv2d(inputs, outputs, 1, bias=False),
        nn.BatchNorm2d(outputs),
    )


def _stage(inputs: int, planes: int, blocks: int, stride: int) -> nn.Sequential:
    """`blocks` blocks, of which the first changes size and channels."""
    first = Bottle2neck(inputs, planes, stride, first=True)
    return nn.Sequential(first, *(Bottle2neck(planes * EXPANSION, planes) for _ in range(blocks - 1)))


def _conv3x3(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    """A 3x3 convolution that keeps the size (divided by `stride`) and has no bias."""
    return nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
