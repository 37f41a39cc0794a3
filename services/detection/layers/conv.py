"""Convolution + batch norm + SiLU, its relatives with two kernels or a soft stride, and how they fuse for serving.

Knows the key names of the YOLO family (`conv`, `bn`, `conv1`, `conv2`); knows no network. Fusing changes the state
dict, so it is for networks that already hold their weights.
"""

import copy
from typing import Protocol, TypeVar, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

EPS, MOMENTUM = 1e-3, 0.03
"""Of every batch norm in these networks; not torch's defaults."""

Network = TypeVar("Network", bound=nn.Module)


@runtime_checkable
class Fusible(Protocol):
    """A block that can fold its batch norms into its kernels, in place."""

    def fuse(self) -> None:
        """Fold; doing it twice changes nothing."""


class Conv(nn.Module):
    """Convolution without bias, padded to keep the size, batch norm, SiLU (nothing unless `active`).

    `groups` of channels do not see each other.
    """

    def __init__(
        self, inputs: int, outputs: int, kernel: int = 1, stride: int = 1, *, groups: int = 1, active: bool = True
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
        self.bn: nn.Module = nn.BatchNorm2d(outputs, eps=EPS, momentum=MOMENTUM)
        self.act = nn.SiLU() if active else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(n, inputs, h, w) → (n, outputs, h/stride, w/stride)."""
        made: Tensor = self.act(self.bn(self.conv(x)))
        return made

    def fold(self) -> tuple[Tensor, Tensor]:
        """Kernel and bias of the one convolution that equals convolution and batch norm."""
        norm = self.bn
        if not isinstance(norm, nn.BatchNorm2d) or norm.running_mean is None or norm.running_var is None:
            return self.conv.weight, torch.zeros(len(self.conv.weight)) if self.conv.bias is None else self.conv.bias
        scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
        return self.conv.weight * scale.view(-1, 1, 1, 1), norm.bias - norm.running_mean * scale

    def fuse(self) -> None:
        """Fold the batch norm into the kernel."""
        if isinstance(self.bn, nn.BatchNorm2d):
            self.conv, self.bn = _with_bias(self.conv, *self.fold()), nn.Identity()


class RepConv(nn.Module):
    """SiLU of a 3x3 and a 1x1 convolution, each with its batch norm; one 3x3 once fused."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv1: Conv | None = Conv(inputs, outputs, 3, active=False)
        self.conv2: Conv | None = Conv(inputs, outputs, 1, active=False)
        self.act = nn.SiLU()

    def forward(self, x: Tensor) -> Tensor:
        """(n, inputs, h, w) → (n, outputs, h, w)."""
        if self.conv1 is None or self.conv2 is None:
            made: Tensor = self.act(self.conv(x))
        else:
            made = self.act(self.conv1(x) + self.conv2(x))
        return made

    def fuse(self) -> None:
        """Add both kernels, the 1x1 in the middle of the 3x3."""
        if self.conv1 is None or self.conv2 is None:
            return
        (kernel, bias), (point, shift) = self.conv1.fold(), self.conv2.fold()
        self.conv = _with_bias(self.conv1.conv, kernel + F.pad(point, (1, 1, 1, 1)), bias + shift)
        self.conv1 = self.conv2 = None


class AveragedConv(nn.Module):
    """Halves the size: a 2x2 mean at every pixel, then a 3x3 convolution of stride 2 (AConv)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.cv1 = Conv(inputs, outputs, 3, 2)

    def forward(self, x: Tensor) -> Tensor:
        """(n, inputs, h, w) → (n, outputs, h/2, w/2), for even h and w."""
        made: Tensor = self.cv1(F.avg_pool2d(x, 2, stride=1))
        return made


@torch.no_grad()
def fuse_batch_norms(network: Network) -> Network:
    """A copy in eval mode that computes the same with fewer steps: batch norms and parallel kernels folded."""
    made = copy.deepcopy(network).eval()
    for block in list(made.modules()):
        if isinstance(block, Fusible):
            block.fuse()
    return made


def _with_bias(conv: nn.Conv2d, weight: Tensor, bias: Tensor) -> nn.Conv2d:
    """A convolution of the same geometry with these numbers."""
    made = nn.Conv2d(
        conv.in_channels,
        conv.out_channels,
        (weight.shape[2], weight.shape[3]),
        (conv.stride[0], conv.stride[1]),
        (conv.padding[0], conv.padding[1]) if not isinstance(conv.padding, str) else conv.padding,
        groups=conv.groups,
        device=weight.device,
    )
    made.load_state_dict({"weight": weight.detach(), "bias": bias.detach()})
    return made
