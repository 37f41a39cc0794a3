"""The decoder of PraNet and PraNet-V2: receptive-field blocks and the partial decoder.

Knows features at 1/8, 1/16 and 1/32; knows nothing about backbones or reverse attention.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class BasicConv(nn.Module):
    """Convolution and batch norm, without an activation: the papers' drawings show one, the checkpoints have none."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int | tuple[int, int],
        *,
        padding: int | tuple[int, int] = 0,
        dilation: int = 1,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, padding=padding, dilation=dilation, bias=False)
        self.bn = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, inputs, h, w) to (n, outputs, h, w)."""
        out: Tensor = self.bn(self.conv(x))
        return out


class ReceptiveField(nn.Module):
    """RFB: four branches that see further and further, joined and added to a 1x1 shortcut."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.branch0 = nn.Sequential(BasicConv(inputs, outputs, 1))
        self.branch1 = _branch(inputs, outputs, reach=3)
        self.branch2 = _branch(inputs, outputs, reach=5)
        self.branch3 = _branch(inputs, outputs, reach=7)
        self.conv_cat = BasicConv(4 * outputs, outputs, 3, padding=1)
        self.conv_res = BasicConv(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, inputs, h, w) to (n, outputs, h, w)."""
        branches = [branch(x) for branch in (self.branch0, self.branch1, self.branch2, self.branch3)]
        return F.relu(self.conv_cat(torch.cat(branches, dim=1)) + self.conv_res(x))


class PartialDecoder(nn.Module):
    """Joins three levels of these channels into one coarse map at 1/8 by multiplication and concatenation.

    The outputs, of `classes` channels each, are named `conv5` in PraNet, `conv5_fg` and `conv5_bg` in PraNet-V2.
    """

    def __init__(self, channels: int, heads: Sequence[str] = ("conv5",), classes: int = 1) -> None:
        super().__init__()
        self.conv_upsample1 = BasicConv(channels, channels, 3, padding=1)
        self.conv_upsample2 = BasicConv(channels, channels, 3, padding=1)
        self.conv_upsample3 = BasicConv(channels, channels, 3, padding=1)
        self.conv_upsample4 = BasicConv(channels, channels, 3, padding=1)
        self.conv_upsample5 = BasicConv(2 * channels, 2 * channels, 3, padding=1)
        self.conv_concat2 = BasicConv(2 * channels, 2 * channels, 3, padding=1)
        self.conv_concat3 = BasicConv(3 * channels, 3 * channels, 3, padding=1)
        self.conv4 = BasicConv(3 * channels, 3 * channels, 3, padding=1)
        self.heads = tuple(heads)
        for name in self.heads:
            self.add_module(name, nn.Conv2d(3 * channels, classes, 1))

    def forward(self, x1: Tensor, x2: Tensor, x3: Tensor) -> tuple[Tensor, ...]:
        """Raw logits (n, classes, h/8, w/8) per head, from features at 1/32 (`x1`), 1/16 (`x2`) and 1/8 (`x3`)."""
        up_x1, up_x2 = _double(x1), _double(x2)
        x2_1 = self.conv_upsample1(up_x1) * x2
        x3_1 = self.conv_upsample2(_double(up_x1)) * self.conv_upsample3(up_x2) * x3
        x2_2 = self.conv_concat2(torch.cat((x2_1, self.conv_upsample4(up_x1)), dim=1))
        x3_2 = self.conv_concat3(torch.cat((x3_1, self.conv_upsample5(_double(x2_2))), dim=1))
        out = self.conv4(x3_2)
        return tuple(self.get_submodule(name)(out) for name in self.heads)


def _branch(inputs: int, outputs: int, reach: int) -> nn.Sequential:
    """1x1, then a cross of 1xn and nx1, then a 3x3 dilated by `reach`."""
    return nn.Sequential(
        BasicConv(inputs, outputs, 1),
        BasicConv(outputs, outputs, (1, reach), padding=(0, reach // 2)),
        BasicConv(outputs, outputs, (reach, 1), padding=(reach // 2, 0)),
        BasicConv(outputs, outputs, 3, padding=reach, dilation=reach),
    )


def _double(x: Tensor) -> Tensor:
    """Bilinear x2 with aligned corners, as everywhere in this decoder and nowhere in the attention."""
    return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True)
