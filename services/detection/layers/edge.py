"""Edges as a second stream of features, and how they join the first (HieraEdgeNet, section 3).

The official Sobel layer convolves in three dimensions with padding in depth and takes the slice that lies in the
padding: its output is 0 whatever it sees. `official` keeps that, so that official weights compute what they were
trained to; `described` takes the slice that the paper means.
"""

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from services.detection.layers.conv import Conv

Edge = Literal["official", "described"]

_SOBEL = ((1.0, 2.0, 1.0), (0.0, 0.0, 0.0), (-1.0, -2.0, -1.0))
"""Brightness above less brightness below."""


def plain_norms(block: nn.Module) -> None:
    """Give batch norms torch's own constants: what these modules have when they stand alone, outside a detector."""
    for module in block.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps, module.momentum = 1e-5, 0.1


class _Sobel(nn.Module):
    """Both derivatives of each channel, added. The kernels are tensors of the checkpoint, and stay as they are."""

    def __init__(self, channels: int, edge: Edge) -> None:
        super().__init__()
        self.edge = edge
        down = torch.tensor(_SOBEL)
        self.sobel_kernel_x_conv3d = _fixed(down.T, channels)
        self.sobel_kernel_y_conv3d = _fixed(down, channels)

    def forward(self, x: Tensor) -> Tensor:
        """(n, c, h, w) → (n, c, h, w)."""
        if self.edge == "official":
            return torch.zeros_like(x)
        both = self.sobel_kernel_x_conv3d.weight + self.sobel_kernel_y_conv3d.weight
        return F.conv2d(x, both[:, :, 0], padding=1, groups=x.shape[1])


def _fixed(kernel: Tensor, channels: int) -> nn.Conv3d:
    """The same kernel (3, 3) for each channel, held as the official layer holds it."""
    conv = nn.Conv3d(channels, channels, (1, 3, 3), groups=channels, bias=False)
    conv.weight = nn.Parameter(kernel.expand(channels, 1, 1, 3, 3).clone(), requires_grad=False)
    return conv


class EdgeModule(nn.Module):
    """HEM: edges of a fine map, max-pooled to each coarser level, `official` or `described`.

    `outs` are the channels at each level, 1/2, 1/4, 1/8 … of the map's size.
    """

    def __init__(self, channels: int, outs: Sequence[int], edge: Edge = "described") -> None:
        super().__init__()
        self.sc = _Sobel(channels, edge)
        self.conv_1x1s = nn.ModuleList(Conv(channels, out) for out in outs)
        plain_norms(self)

    def forward(self, x: Tensor) -> list[Tensor]:
        """(n, c, h, w) → (n, out, h/2, w/2), (n, out, h/4, w/4) and so on."""
        x, levels = self.sc(x), []
        for conv in self.conv_1x1s:
            x = F.max_pool2d(x, 2)
            levels.append(conv(x))
        return levels


class EdgeFusion(nn.Module):
    """SEF: maps of one size, for example edges and features, squeezed, mixed and widened again.

    Args:
        channels: Of each map.
        out: Channels of the result.
    """

    def __init__(self, channels: Sequence[int], out: int) -> None:
        super().__init__()
        half = out // 2
        self.conv_channel_fusion = Conv(sum(channels), half)
        self.conv_3x3_feature_extract = Conv(half, half, 3)
        self.conv_1x1 = Conv(half, out)
        plain_norms(self)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Maps (n, c, h, w) → (n, out, h, w)."""
        made: Tensor = self.conv_1x1(self.conv_3x3_feature_extract(self.conv_channel_fusion(torch.cat(list(maps), 1))))
        return made


class SpaceToDepthConv(nn.Module):
    """Halves the size without dropping a pixel: each 2x2 square becomes four times the channels, then a 3x3."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.conv = Conv(4 * channels, out, 3)
        plain_norms(self)

    def forward(self, x: Tensor) -> Tensor:
        """(n, c, h, w) → (n, out, h/2, w/2), for even h and w."""
        corners = [x[..., row::2, column::2] for column in (0, 1) for row in (0, 1)]
        made: Tensor = self.conv(torch.cat(corners, dim=1))
        return made
