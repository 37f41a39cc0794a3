"""PATNet: FasterNet whose idle three quarters of the channels get attention. Knows the published sizes.

Stages 1 to 3 weigh channels (PAT_ch), stage 4 attends among places (PAT_sf); sizes differ in whether a spatial gate
follows each block (PAT_sp). The published code is that of its successor PartialNet, whose layout this is, key for key.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from services.detection.layers.partial import PartialConv, PartialNetwork, Shape, drop_path, perceptron
from services.detection.layers.visual_attention import ChannelGate, SpatialGate, SpatialSelfAttention
from shared.registry import builder

Size = Literal["t0", "t1", "t2", "s", "m", "l"]


@dataclass(frozen=True, slots=True)
class _Published:
    """A size, and whether its published configuration has the spatial gate."""

    shape: Shape
    spatial: bool = False


SIZES: Mapping[Size, _Published] = {
    "t0": _Published(Shape(32, (1, 2, 8, 2), nn.GELU)),
    "t1": _Published(Shape(48, (1, 2, 8, 2), nn.GELU, 0.02), spatial=True),
    "t2": _Published(Shape(64, (2, 2, 6, 4), nn.ReLU, 0.05)),
    "s": _Published(Shape(96, (2, 2, 9, 4), nn.ReLU, 0.1)),
    "m": _Published(Shape(128, (2, 3, 16, 4), nn.ReLU, 0.2)),
    "l": _Published(Shape(160, (2, 3, 20, 4), nn.ReLU, 0.3)),
}
"""Published sizes. Whether the paper's T2 has the spatial gate is undecided: its abstract says yes, its code no."""


class _ChannelMixing(PartialConv):
    """PAT_ch: a quarter convolved, the rest weighted by channel."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.attn = ChannelGate(self.sizes[1])
        self.norm = nn.BatchNorm2d(self.sizes[1])

    def forward(self, x: Tensor) -> Tensor:
        """(n, c, h, w) → (n, c, h, w)."""
        near, rest = torch.split_with_sizes(x, self.sizes, dim=1)
        return torch.cat((self.partial_conv3(near), self.norm(self.attn(rest))), dim=1)


class _SelfMixing(PartialConv):
    """PAT_sf: a quarter convolved, the rest attending to itself."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__(channels)
        self.attn = SpatialSelfAttention(self.sizes[1], heads)
        self.norm = nn.LayerNorm(self.sizes[1], eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        """(n, c, h, w) → (n, c, h, w)."""
        height, width = x.shape[-2:]
        near, rest = torch.split_with_sizes(x, self.sizes, dim=1)
        tokens = self.attn(self.norm(rest.flatten(2).transpose(1, 2)), height, width)
        return torch.cat((self.partial_conv3(near), tokens.transpose(1, 2).reshape(rest.shape)), dim=1)


class _Block(nn.Module):
    """Mixing, then a perceptron; only in the last stage does the mixing have a residual of its own."""

    def __init__(self, mixing: nn.Module, mlp: nn.Module, rate: float, *, last: bool) -> None:
        super().__init__()
        self.spatial_mixing = mixing
        self.mlp = mlp
        self.rate = rate
        self.last = last

    def forward(self, x: Tensor) -> Tensor:
        """(n, c, h, w) → (n, c, h, w)."""
        mixed = self.spatial_mixing(x)
        if self.last:
            x = mixed = x + mixed
        branch: Tensor = self.mlp(mixed)
        return x + drop_path(branch, self.rate, self.training)


@builder(
    "patnet", layouts=[{"size": s, "spatial": g, "heads": h} for s in SIZES for g in (False, True) for h in (4, 6)]
)
class PATNet(PartialNetwork):
    """PATNet (2025) in a published size.

    A spatial gate follows each block if `spatial`; None is what the size was published with. `heads` are those of the
    self-attention in stage 4. With `features` there are four maps for a detector instead of logits.
    """

    def __init__(
        self,
        size: Size = "t0",
        *,
        spatial: bool | None = None,
        heads: int = 4,
        classes: int = 1000,
        features: bool = False,
    ) -> None:
        published = SIZES[size]
        shape, gated = published.shape, published.spatial if spatial is None else spatial

        def make(stage: int, channels: int, rate: float) -> nn.Module:
            mixing = _SelfMixing(channels, heads) if stage == 3 else _ChannelMixing(channels)
            gate = [SpatialGate(channels)] if gated else []
            return _Block(mixing, perceptron(channels, shape.activation, *gate), rate, last=stage == 3)

        super().__init__(shape, make, classes, features=features)
