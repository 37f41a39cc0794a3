"""The convolutions of VGG19, cut at relu5_1: five levels of features for RRFormer and for its perceptual loss.

Knows the layout of torchvision's VGG19 `features`, key for key; knows nothing about who looks at the levels. Pictures
go in as they are, unless the caller normalises them.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from shared.registry import builder

WIDTHS = (64, 128, 256, 512, 512)
"""Channels of the five levels, in VGG19."""

_REPEATS = (2, 2, 4, 4, 4)
"""Convolutions per level."""

_TAPS = (1, 6, 11, 20, 29)
"""Modules after which a level is read: relu1_1, 2_1, 3_1, 4_1, 5_1."""


class VggFeatures(nn.Module):
    """VGG19 up to relu5_1 (Simonyan & Zisserman, 2015), with these widths of its five levels.

    The convolutions after it are kept for the layout alone, as in official checkpoints, if `whole`.
    """

    idle: ClassVar[tuple[str, ...]] = tuple(f"vgg_pretrained_features.{index}." for index in (30, 32, 34))
    ballast: ClassVar[int] = 512 * 2**20  # the classifier, in a checkpoint of all of VGG19
    renamed: ClassVar[Mapping[str, str]] = {"features.": "vgg_pretrained_features."}

    def __init__(self, widths: Sequence[int] = WIDTHS, *, whole: bool = True) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for (inputs, width), repeats in zip(pairwise((3, *widths)), _REPEATS, strict=True):
            for repeat in range(repeats):
                layers += [nn.Conv2d(inputs if repeat == 0 else width, width, 3, padding=1), nn.ReLU()]
            layers.append(nn.MaxPool2d(2))
        self.vgg_pretrained_features = nn.Sequential(*layers[: None if whole else _TAPS[-1] + 1])

    def forward(self, image: Tensor) -> list[Tensor]:
        """Features of a picture (n, 3, h, w) at 1, 1/2, 1/4, 1/8 and 1/16 of its size, sides rounded down."""
        levels: list[Tensor] = []
        x = image
        for index, layer in enumerate(self.vgg_pretrained_features):
            # Never in place: a level must survive what comes after it.
            x = F.relu(x) if isinstance(layer, nn.ReLU) else layer(x)
            if index in _TAPS:
                levels.append(x)
            if index == _TAPS[-1]:
                break
        return levels


@builder("vgg19-features")
def vgg19_features(widths: Sequence[int] = WIDTHS, whole: bool = True) -> VggFeatures:
    """VGG19's convolutions with random weights; 12,944,960 parameters up to relu5_1 in the official layout."""
    return VggFeatures(tuple(widths), whole=whole)
