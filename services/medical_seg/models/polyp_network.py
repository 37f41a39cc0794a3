"""Parts shared by PraNet and PraNet-V2: backbone, receptive fields, partial decoder and refining branches.

Knows the order and the names of the official checkpoints; the attention is written by the two networks.
"""

from collections.abc import Sequence
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from fovea.errors import InvalidOption
from services.medical_seg.models.partial_decoder import BasicConv, PartialDecoder, ReceptiveField
from services.medical_seg.models.res2net import Res2Net
from shared.vision.backbones.efficientnet_lite import EfficientNetLite0

LEVELS = (2, 3, 4)
"""Levels of the backbone that the decoder reads, at 1/8, 1/16 and 1/32."""

STRIDE = 32
"""Height and width must be multiples of this, or the levels would not meet."""


class PolypNetwork(nn.Module):
    """The modules that both networks share, in checkpoint order; the subclasses write the attention.

    Class attributes:
        idle: Prefixes of keys that official checkpoints carry and no prediction touches.
    """

    idle: ClassVar[tuple[str, ...]]

    def __init__(
        self,
        width: float,
        decoder: int,
        classifier: bool,
        *,
        backbone: str,
        heads: Sequence[str],
        classes: int = 1,
        unused: nn.Module | None = None,
        encoder: Res2Net | EfficientNetLite0 | None = None,
    ) -> None:
        super().__init__()
        if unused is not None:  # first in the official checkpoint of V2
            self.conv = unused
        encoder = encoder or Res2Net(width, classifier=classifier)
        self.add_module(backbone, encoder)
        self.backbone_name = backbone
        _, c2, c3, c4 = encoder.channels
        self.rfb2_1 = ReceptiveField(c2, decoder)
        self.rfb3_1 = ReceptiveField(c3, decoder)
        self.rfb4_1 = ReceptiveField(c4, decoder)
        self.agg1 = PartialDecoder(decoder, [f"conv5{head}" for head in heads], classes)
        self.heads = tuple(heads)
        self._add_branch(4, c4, int(256 * width), classes, kernels=(5, 5, 5, 1))
        self._add_branch(3, c3, int(64 * width), classes, kernels=(3, 3, 3))
        self._add_branch(2, c2, int(64 * width), classes, kernels=(3, 3, 3))

    def _add_branch(self, level: int, inputs: int, hidden: int, classes: int, kernels: Sequence[int]) -> None:
        """One refining branch, `ra<level>_conv1…n`; the last convolution once per head."""
        self.add_module(f"ra{level}_conv1", BasicConv(inputs, hidden, 1))
        for index, kernel in enumerate(kernels[:-1], start=2):
            self.add_module(f"ra{level}_conv{index}", BasicConv(hidden, hidden, kernel, padding=kernel // 2))
        for head in self.heads:
            last = BasicConv(hidden, classes, kernels[-1], padding=kernels[-1] // 2)
            self.add_module(f"ra{level}_conv{len(kernels) + 1}{head}", last)

    def _refine(self, level: int, features: Tensor) -> list[Tensor]:
        """The branch of a level: raw maps (n, k, h, w), one per head. Only its middle convolutions have a ReLU."""
        last = 5 if level == 4 else 4
        x = self.get_submodule(f"ra{level}_conv1")(features)
        for index in range(2, last):
            x = F.relu(self.get_submodule(f"ra{level}_conv{index}")(x))
        return [self.get_submodule(f"ra{level}_conv{last}{head}")(x) for head in self.heads]

    def _encode(self, x: Tensor) -> tuple[dict[int, Tensor], tuple[Tensor, ...]]:
        """Features by level (2, 3, 4), and the coarse maps S5 at 1/8, one per head."""
        _, x2, x3, x4 = self.get_submodule(self.backbone_name)(x)
        coarse: tuple[Tensor, ...] = self.agg1(self.rfb4_1(x4), self.rfb3_1(x3), self.rfb2_1(x2))
        return {2: x2, 3: x3, 4: x4}, coarse

    def maps(self, x: Tensor) -> tuple[Tensor, ...]:
        """`forward` without its size check: what exporters trace."""
        raise NotImplementedError

    def prediction(self, x: Tensor) -> Tensor:
        """The one logit map (n, k, h, w) that is served."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """All maps of a normalised picture (n, 3, h, w) as raw logits (n, k, h, w).

        Raises InvalidOption: height or width is not a multiple of 32.
        """
        height, width = x.shape[-2:]
        if height % STRIDE or width % STRIDE:
            detail = f"Height and width must be multiples of {STRIDE}, got {height}x{width}."
            raise InvalidOption(detail, hint="Resize or pad the picture first.", field="x")
        return self.maps(x)


def rescale(x: Tensor, factor: float) -> Tensor:
    """Bilinear, corners not aligned, no antialias: every resize around the attention."""
    return F.interpolate(x, scale_factor=factor, mode="bilinear", align_corners=False)
