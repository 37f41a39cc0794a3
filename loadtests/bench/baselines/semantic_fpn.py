"""Semantic FPN: torchvision's feature pyramid over EfficientNet-Lite0, its levels added up to one map.

Knows torchvision (`pip install torchvision`, the version that goes with the installed torch) and one backbone; knows no
data.
"""

from collections import OrderedDict
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import Conv2dNormActivation, FeaturePyramidNetwork

from fovea_recipes.training.imagenet import load_imagenet
from shared.vision.backbones.efficientnet_lite import MEAN, STD, EfficientNetLite0

WIDTH = 96
"""Channels of every level."""

HEAD = 64
"""Channels of what is added up."""


class SemanticFpn(nn.Module):
    """A plain segmenter (Kirillov et al. 2019, Panoptic Feature Pyramid Networks, section 3.2), 3.67 million weights.

    Each level of the pyramid is convolved and doubled in size until it has a quarter of the picture's sides; the levels
    are added, and a 1x1 convolution makes the map. The backbone starts from ImageNet.
    """

    def __init__(self) -> None:
        super().__init__()
        self.backbone = EfficientNetLite0()
        load_imagenet(self.backbone, MEAN, STD)
        channels = list(self.backbone.channels)
        self.pyramid = FeaturePyramidNetwork(channels, WIDTH, norm_layer=nn.BatchNorm2d)
        self.branches = nn.ModuleList(_make_branch(doublings) for doublings in range(len(channels)))
        self.classify = nn.Conv2d(HEAD, 1, 1)

    def forward(self, x: Tensor) -> list[Tensor]:
        """One map of logits (n, 1, h, w) of normalised pictures (n, 3, h, w)."""
        levels = OrderedDict((str(at), level) for at, level in enumerate(self.backbone.features(x)))
        parts = [branch(level) for branch, level in zip(self.branches, self.pyramid(levels).values(), strict=True)]
        found = self.classify(torch.stack(parts).sum(dim=0))
        return [F.interpolate(found, size=x.shape[2:], mode="bilinear", align_corners=False)]

    def prediction(self, x: Tensor) -> Tensor:
        """The map alone, as our networks serve it."""
        return cast("Tensor", self(x)[0])


def _make_branch(doublings: int) -> nn.Sequential:
    """Convolutions of one level, each but the first level's followed by a doubling of both sides."""
    layers: list[nn.Module] = []
    for at in range(max(1, doublings)):
        layers.append(Conv2dNormActivation(HEAD if at else WIDTH, HEAD, 3))
        if doublings:
            layers.append(nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False))
    return nn.Sequential(*layers)
