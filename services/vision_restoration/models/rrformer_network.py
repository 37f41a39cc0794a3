"""RRFormer: a picture and its VGG levels in, the picture without its reflections out.

Knows the maths of *Benchmarking Ultra-High-Definition Image Reflection Removal* and the layout of its checkpoints, key
for key. Knows nothing about files, tiles or engines.

Two networks share one layout. The released code computes the transformer body and then goes on with the body's input:
`released` leaves the body out, which changes no bit; `paper` goes on with the body's result.
"""

from collections.abc import Sequence
from typing import Any, ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fovea.errors import InvalidOption
from services.vision_restoration.models.swin import SwinBody
from services.vision_restoration.models.vgg import WIDTHS, VggFeatures
from services.vision_restoration.variant import Variant
from shared.registry import builder

GRID = 32
"""Side of the coarsest pooling cell: no smaller picture has one, and tiles must begin on its multiples."""

_POOLS = (4, 8, 16, 32)


class ConvLayer(nn.Module):
    """One convolution, named `conv2d` as in checkpoints, and its ReLU."""

    def __init__(self, conv2d: nn.Conv2d | nn.ConvTranspose2d) -> None:
        super().__init__()
        self.conv2d = conv2d

    def forward(self, x: Tensor) -> Tensor:
        """ReLU of the convolution."""
        return F.relu(self.conv2d(x))


class Pyramid(nn.Module):
    """Means over cells of 4, 8, 16 and 32 pixels, spread out again and joined to the map (n, c, h, w)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        part = channels // len(_POOLS)
        self.stages = nn.ModuleList(
            nn.Sequential(nn.AvgPool2d(side), nn.Conv2d(channels, part, 1, bias=False)) for side in _POOLS
        )
        self.bottleneck = nn.Conv2d(channels + len(_POOLS) * part, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(n, c, h, w) → the same."""
        size = x.shape[2:]
        means = [F.interpolate(F.leaky_relu(stage(x), 0.2), size=size, mode="nearest") for stage in self.stages]
        return F.leaky_relu(self.bottleneck(torch.cat([*means, x], dim=1)), 0.2)


class RRFormer(nn.Module):
    """The network `icnn` of the official checkpoints.

    Args:
        variant: `released` skips the body, `paper` uses it; both have all its weights.
        levels: Channels of the five VGG levels.
        features: Channels at full resolution.
        body: Channels at half resolution, within the body.
        groups, blocks, heads: Of the body.
        buffers: Whether the state dict holds the derived buffers of official checkpoints.
    """

    nested: ClassVar[str] = "icnn"
    ballast: ClassVar[int] = 512 * 2**20  # optimisers and discriminator, in a training checkpoint
    idle: ClassVar[tuple[str, ...]] = (".attn_mask", ".relative_position_index", "swinir_block.conv_last.")

    def __init__(
        self,
        variant: Variant = "released",
        levels: Sequence[int] = WIDTHS,
        features: int = 256,
        body: int = 240,
        groups: int = 5,
        blocks: int = 6,
        heads: int = 6,
        *,
        buffers: bool = True,
    ) -> None:
        super().__init__()
        if variant not in {"released", "paper"}:
            raise InvalidOption(f"There is no variant {variant!r}.", hint="released or paper.", field="variant")
        self.variant = variant
        self.levels = tuple(levels)
        self.conv1 = ConvLayer(nn.Conv2d(3 + sum(levels), features, 1))
        self.conv2 = ConvLayer(nn.Conv2d(features, features, 3, padding=1))
        self.conv3 = ConvLayer(nn.Conv2d(features, body, 3, stride=2, padding=1))
        self.swinir_block = SwinBody(body, groups, blocks, heads, buffers=buffers)
        self.deconv1 = ConvLayer(nn.ConvTranspose2d(body, features, 4, stride=2, padding=1))
        self.deconv2 = ConvLayer(nn.Conv2d(features, features, 3, padding=1))
        self.pyramid_module = Pyramid(features)
        self.deconv3 = ConvLayer(nn.Conv2d(features, 3, 1))

    def forward(self, image: Tensor, levels: Sequence[Tensor]) -> Tensor:
        """The clean picture (n, 3, h, w), not clamped, of RGB in 0..1 and the output of `vgg19-features` on it.

        Raises InvalidOption: a side is shorter than 32.
        """
        height, width = image.shape[2:]
        if min(height, width) < GRID:
            raise InvalidOption(f"Sides must have at least {GRID} pixels, got {height}×{width}.", field="image")
        return self.restore(image, levels)

    def restore(self, image: Tensor, levels: Sequence[Tensor]) -> Tensor:
        """`forward` without its size check: what exporters trace."""
        x = self.conv3(self.conv2(self.embed(image, levels)))
        if self.variant == "paper":
            x = self.swinir_block(x)
        x = self.pyramid_module(self.deconv2(self.deconv1(x)))
        return cast("Tensor", self.deconv3(x))[..., : image.shape[2], : image.shape[3]]

    def embed(self, image: Tensor, levels: Sequence[Tensor]) -> Tensor:
        """`conv1` of the picture and its grown levels (n, f, h, w), without ever building their 1,475 channels.

        A 1×1 convolution commutes with bilinear growth: each level is convolved at its own size, then grown. The first
        level has the picture's size already.
        """
        weight, bias = self.conv1.conv2d.weight, self.conv1.conv2d.bias
        first, *others = levels
        own, *parts = torch.split(weight, [3 + self.levels[0], *self.levels[1:]], dim=1)
        x = F.conv2d(torch.cat([image, first], dim=1), own, bias)
        for part, level in zip(parts, others, strict=True):
            small = F.conv2d(level, part)
            x = x + F.interpolate(small, size=image.shape[2:], mode="bilinear", align_corners=False)
        return F.relu(x)


class RestorerNetwork(nn.Module):
    """RRFormer with its tower: one module from picture to picture, as it is trained slim, exported and served."""

    def __init__(self, tower: VggFeatures, net: RRFormer) -> None:
        super().__init__()
        self.tower = tower
        self.net = net

    def forward(self, image: Tensor) -> Tensor:
        """The clean picture (n, 3, h, w), not clamped, of one in 0..1."""
        return self.net.restore(image, self.tower(image))


@builder("rrformer")
def rrformer(
    variant: Variant = "released",
    levels: Sequence[int] = WIDTHS,
    features: int = 256,
    body: int = 240,
    groups: int = 5,
    blocks: int = 6,
    heads: int = 6,
    buffers: bool = True,
) -> RRFormer:
    """RRFormer with random weights; the defaults are the official layout (20,355,130 parameters)."""
    return RRFormer(variant, levels, features, body, groups, blocks, heads, buffers=buffers)


@builder("rrformer-restorer")
def restorer(widths: Sequence[int] = WIDTHS, whole: bool = True, **config: Any) -> RestorerNetwork:
    """Tower and network in one; `config` is that of `rrformer`, whose levels are the tower's widths."""
    return RestorerNetwork(VggFeatures(widths, whole=whole), rrformer(levels=tuple(widths), **config))
