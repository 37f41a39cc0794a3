"""Parts shared by FasterNet and PATNet: the skeleton of stages, and convolution of a quarter of the channels.

Knows the layout of both official checkpoints; the blocks are the networks' own.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fovea.errors import InvalidOption

STRIDE = 32
"""Height and width must be multiples of this: four stages at 1/4, 1/8, 1/16 and 1/32."""

FEATURES = 1280
"""Channels between the pooled map and the classifier."""


@dataclass(frozen=True, slots=True)
class Shape:
    """One published size.

    Attributes:
        channels: E; the stages have E, 2E, 4E and 8E.
        depths: Blocks per stage.
        activation: Between the two convolutions of a block, and before the classifier.
        drop_path: How often the last block's branch is dropped in training; earlier ones less, the first never.
    """

    channels: int
    depths: tuple[int, int, int, int]
    activation: type[nn.Module]
    drop_path: float = 0.0


Make = Callable[[int, int, float], nn.Module]
"""Stage (0 to 3), channels and drop rate → a block."""


class PartialConv(nn.Module):
    """A 3x3 convolution of the first quarter of the channels; the others pass (FasterNet, section 3.1)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.sizes = [channels // 4, channels - channels // 4]
        self.partial_conv3 = nn.Conv2d(channels // 4, channels // 4, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(n, c, h, w) → (n, c, h, w)."""
        mixed, rest = torch.split_with_sizes(x, self.sizes, dim=1)
        return torch.cat((self.partial_conv3(mixed), rest), dim=1)


def perceptron(channels: int, activation: type[nn.Module], *more: nn.Module) -> nn.Sequential:
    """`mlp` of a block: 1x1 to twice the channels, batch norm, activation, 1x1 back, and what may follow."""
    return nn.Sequential(
        nn.Conv2d(channels, 2 * channels, 1, bias=False),
        nn.BatchNorm2d(2 * channels),
        activation(),
        nn.Conv2d(2 * channels, channels, 1, bias=False),
        *more,
    )


def drop_path(x: Tensor, rate: float, training: bool) -> Tensor:
    """Stochastic depth: in training whole samples of a branch (n, c, h, w) are zeroed, the others scaled up."""
    if not training or rate == 0:
        return x
    kept = torch.rand((len(x), 1, 1, 1), device=x.device) >= rate
    return x * kept / (1 - rate)


class _Patches(nn.Module):
    """The stem: non-overlapping patches of 4x4 pixels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, channels, 4, stride=4, bias=False)
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        """(n, 3, h, w) → (n, c, h/4, w/4)."""
        made: Tensor = self.norm(self.proj(x))
        return made


class _Merging(nn.Module):
    """Between stages: half the size, twice the channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.reduction = nn.Conv2d(channels, 2 * channels, 2, stride=2, bias=False)
        self.norm = nn.BatchNorm2d(2 * channels)

    def forward(self, x: Tensor) -> Tensor:
        """(n, c, h, w) → (n, 2c, h/2, w/2)."""
        made: Tensor = self.norm(self.reduction(x))
        return made


class _Stage(nn.Module):
    """Blocks of one size."""

    def __init__(self, blocks: list[nn.Module]) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*blocks)

    def forward(self, x: Tensor) -> Tensor:
        """(n, c, h, w) → (n, c, h, w)."""
        made: Tensor = self.blocks(x)
        return made


class PartialNetwork(nn.Module):
    """Stem, four stages of blocks from `make` with merging between them, and a classifier or four feature maps.

    With `features` there is no classifier: `forward` gives the maps of the four stages, each through a batch norm of
    its own.
    """

    def __init__(self, shape: Shape, make: Make, classes: int, *, features: bool) -> None:
        super().__init__()
        self.patch_embed = _Patches(shape.channels)
        blocks = sum(shape.depths)
        rates = (shape.drop_path * index / max(blocks - 1, 1) for index in range(blocks))
        stages: list[nn.Module] = []
        for stage, depth in enumerate(shape.depths):
            channels = shape.channels << stage
            stages.append(_Stage([make(stage, channels, next(rates)) for _ in range(depth)]))
            if stage < 3:
                stages.append(_Merging(channels))
        self.stages = nn.Sequential(*stages)
        self.features = features
        if features:
            for stage in range(4):
                self.add_module(f"norm{2 * stage}", nn.BatchNorm2d(shape.channels << stage))
        else:
            last = nn.Conv2d(shape.channels << 3, FEATURES, 1, bias=False)
            self.avgpool_pre_head = nn.Sequential(nn.AdaptiveAvgPool2d(1), last, shape.activation())
            self.head = nn.Linear(FEATURES, classes)
        self.apply(_initialise)

    def maps(self, x: Tensor) -> list[Tensor]:
        """Raw outputs of the four stages, at 1/4, 1/8, 1/16 and 1/32 of the picture (n, 3, h, w)."""
        x, found = self.patch_embed(x), []
        for index, stage in enumerate(self.stages):
            x = stage(x)
            if index % 2 == 0:
                found.append(x)
        return found

    def logits(self, x: Tensor) -> Tensor:
        """(n, classes) of a normalised picture (n, 3, h, w)."""
        return self._classified(self.maps(x)[-1])

    def _classified(self, last: Tensor) -> Tensor:
        made: Tensor = self.head(self.avgpool_pre_head(last).flatten(1))
        return made

    def everything(self, x: Tensor) -> tuple[Tensor, ...]:
        """Logits, and the raw outputs of the four stages: what is exported."""
        maps = self.maps(x)
        return self._classified(maps[-1]), *maps

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """Logits (n, classes) of a normalised picture (n, 3, h, w); with `features` the four maps.

        Raises InvalidOption: height or width is not a multiple of 32.
        """
        height, width = x.shape[-2:]
        if height % STRIDE or width % STRIDE:
            detail = f"Height and width must be multiples of {STRIDE}, got {height}x{width}."
            raise InvalidOption(detail, hint="Resize or pad the picture first.", field="x")
        if not self.features:
            return self.logits(x)
        return [self.get_submodule(f"norm{2 * stage}")(level) for stage, level in enumerate(self.maps(x))]


def _initialise(module: nn.Module) -> None:
    """Small normal weights, no offsets: as both papers train from scratch."""
    if isinstance(module, nn.Conv2d | nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
