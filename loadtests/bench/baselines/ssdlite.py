"""SSDLite: torchvision's head and loss on a feature pyramid over EfficientNet-Lite0, which has seen ImageNet.

Knows torchvision (`pip install torchvision`, the version that goes with the installed torch) and one backbone; knows no
data. Default boxes have sizes in pixels, as pictures are trained on as crops and served whole.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.ssd import SSD
from torchvision.models.detection.ssdlite import SSDLiteHead
from torchvision.ops import FeaturePyramidNetwork, box_iou
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from fovea_recipes.training.imagenet import load_imagenet
from shared.vision.backbones.efficientnet_lite import MEAN, STD, EfficientNetLite0

STRIDES = (8, 16, 32, 64, 128)

SIZES = ((20, 32), (48, 70), (100, 150), (200, 280), (400, 560))
"""Sides of the default boxes of each level, pixels."""

RATIOS = (0.5, 1.0, 2.0)

FROZEN = 2
"""Stages that keep their ImageNet weights, next to the stem (torchvision's SSDs keep as much)."""

CANDIDATES = 400
"""Boxes of a class that are looked at, as torchvision's SSD does."""

WIDTH = 96
"""Channels of every level."""


class SsdLite(nn.Module):
    """SSDLite (MobileNetV2, section 6.2) with a feature pyramid, 3.45 million parameters.

    The backbone starts from ImageNet; its stem and first stages stay as they are. Hard negatives are mined over the
    batch rather than in each picture, so that crops without any object count too.

    Args:
        classes: How many, background left out.
    """

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.backbone = EfficientNetLite0()
        load_imagenet(self.backbone)
        self._frozen = [self.backbone.conv_stem, self.backbone.bn1, *list(self.backbone.blocks)[:FROZEN]]
        channels = list(self.backbone.channels[1:])
        self.pyramid = FeaturePyramidNetwork(channels, WIDTH, LastLevelP6P7(WIDTH, WIDTH), nn.BatchNorm2d)
        boxes = AnchorGenerator(SIZES, (RATIOS,) * len(SIZES))
        levels = len(STRIDES)
        head = SSDLiteHead([WIDTH] * levels, boxes.num_anchors_per_location(), classes + 1, nn.BatchNorm2d)
        self.ssd = SSD(nn.Identity(), boxes, (320, 320), classes + 1, head=head)

        for part in self._frozen:
            part.requires_grad_(False)

    def train(self, mode: bool = True) -> SsdLite:
        """As usual, except that frozen layers keep their statistics."""
        super().train(mode)
        for part in self._frozen:
            part.eval()
        return self

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Pictures (n, 3, h, w) in 0..1 as offsets (n, a, 4), logits (n, a, 1 + classes) and default boxes (a, 4)."""
        normal = (x - x.new_tensor(MEAN).view(3, 1, 1)) / x.new_tensor(STD).view(3, 1, 1)
        levels = self.backbone.features(normal)[1:]
        maps = list(self.pyramid(OrderedDict((str(i), level) for i, level in enumerate(levels))).values())
        found: dict[str, Tensor] = self.ssd.head(maps)
        return found["bbox_regression"].float(), found["cls_logits"].float(), self._default_boxes(maps)

    def _default_boxes(self, maps: list[Tensor]) -> Tensor:
        """Corners (a, 4) around the centre of every cell of every level."""
        strides = [[torch.tensor(stride)] * 2 for stride in STRIDES]
        levels = self.ssd.anchor_generator.grid_anchors([level.shape[-2:] for level in maps], strides)
        return torch.cat([boxes + stride / 2 for boxes, stride in zip(levels, STRIDES, strict=True)])

    def predictions(self, x: Tensor) -> Tensor:
        """(n, 4 + classes, a): centre, size and probabilities, as suppression takes them; each class keeps its best."""
        offsets, logits, boxes = self(x)
        coder, scores = self.ssd.box_coder, logits.softmax(-1)[..., 1:]
        least = scores.topk(min(CANDIDATES, len(boxes)), dim=1).values[:, -1:]
        scores = torch.where(scores >= least, scores, 0)
        corners = torch.stack([coder.decode_single(each, boxes) for each in offsets])
        low, high = corners[..., :2], corners[..., 2:]
        return torch.cat([(low + high) / 2, high - low, scores], dim=-1).transpose(1, 2)

    def batch_loss(self, maps: tuple[Tensor, Tensor, Tensor], targets: Tensor, side: tuple[int, int]) -> Tensor:
        """SSD's loss, scalar: smooth L1 and cross-entropy with three negatives per positive.

        Args:
            maps: Output of `forward`.
            targets: (m, 6): picture, class, centre x, centre y, width, height; the last four as shares.
            side: Width and height in pixels.
        """
        offsets, logits, boxes = maps
        size = targets.new_tensor(side)
        centre, half = targets[:, 2:4] * size, targets[:, 4:] * size / 2
        truth: dict[str, Any] = {
            "boxes": torch.cat([centre - half, centre + half], 1),
            "labels": targets[:, 1].long() + 1,
        }
        matched = torch.stack([self._match(truth["boxes"], targets[:, 0] == i, boxes) for i in range(len(offsets))])
        outputs = {"bbox_regression": offsets.flatten(0, 1)[None], "cls_logits": logits.flatten(0, 1)[None]}
        losses = self.ssd.compute_loss([truth], outputs, [boxes.repeat(len(offsets), 1)], [matched.flatten()])
        return sum(losses.values(), offsets.new_zeros(()))

    def _match(self, truth: Tensor, mine: Tensor, boxes: Tensor) -> Tensor:
        """Row of `truth` (m, 4) that each default box (a,) stands for, of those that are `mine` (m,); -1 for none."""
        (rows,) = mine.nonzero(as_tuple=True)
        if not len(rows):
            return torch.full((len(boxes),), -1, dtype=torch.int64)
        found = self.ssd.proposal_matcher(box_iou(truth[rows], boxes))
        return torch.where(found >= 0, rows[found.clamp(min=0)], found)
