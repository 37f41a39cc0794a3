"""PraNet and PraNet-V2: polyp segmentation by reverse attention.

Knows the maths of both papers and the layout of both official checkpoints, key for key. Knows nothing about pictures:
inputs are normalised tensors, outputs raw logits.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from services.medical_seg.models.decoder import BasicConv, PartialDecoder, ReceptiveField
from services.medical_seg.models.res2net import Res2Net
from shared.errors import InvalidOption
from shared.registry import builder

__all__ = ["PraNet", "PraNetV2", "pranet", "pranet_v2"]

STRIDE = 32
"""Height and width must be multiples of this, or the levels would not meet."""


class _Polyp(nn.Module):
    """The modules that both networks share, in checkpoint order; the subclasses write the attention."""

    def __init__(
        self, width: float, decoder: int, classifier: bool, *,
        backbone: str, heads: Sequence[str], classes: int = 1, unused: nn.Module | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        if unused is not None:  # first in the official checkpoint of V2
            self.conv = unused
        encoder = Res2Net(width, classifier=classifier)
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

        Raises:
            InvalidOption: Height or width is not a multiple of 32.
        """
        height, width = x.shape[-2:]
        if height % STRIDE or width % STRIDE:
            detail = f"Height and width must be multiples of {STRIDE}, got {height}x{width}."
            raise InvalidOption(detail, hint="Resize or pad the picture first.", field="x")
        return self.maps(x)


class PraNet(_Polyp):
    """PraNet (Fan et al., MICCAI 2020): a coarse map, refined three times where it is not yet sure of a polyp.

    Args:
        width: Factor on every channel count of backbone and attention.
        decoder: Channels of the partial decoder.
        classifier: Whether the unused ImageNet head exists, as in the official checkpoint.
        reverse: False replaces the reverse attention by ones: the ablation "A = 1", never served.
    """

    def __init__(self, width: float = 1.0, decoder: int = 32, *, classifier: bool = True, reverse: bool = True) -> None:
        super().__init__(width, decoder, classifier, backbone="resnet", heads=("",))
        self.reverse = reverse

    def maps(self, x: Tensor) -> tuple[Tensor, ...]:
        """(map_5, map_4, map_3, map_2), coarse to fine (section 2.3); the last one is the prediction."""
        features, (s5,) = self._encode(x)
        s4 = self._attend(4, features[4], _scale(s5, 0.25))
        s3 = self._attend(3, features[3], _scale(s4, 2))
        s2 = self._attend(2, features[2], _scale(s3, 2))
        return _scale(s5, 8), _scale(s4, 32), _scale(s3, 16), _scale(s2, 8)

    def prediction(self, x: Tensor) -> Tensor:
        """map_2 (n, 1, h, w)."""
        return self.maps(x)[-1]

    def _attend(self, level: int, features: Tensor, crop: Tensor) -> Tensor:
        """Refine `crop` by what the features show outside of it: A = 1 - sigmoid(crop)."""
        seen = features * (1 - torch.sigmoid(crop)) if self.reverse else features
        return self._refine(level, seen)[0] + crop


class PraNetV2(_Polyp):
    """PraNet-V2 (2025): foreground and background maps, the one attending to the difference of both.

    With `classes=1` the softmax over classes is 1 everywhere, so the attention only doubles each foreground map:
    the variant matters with two classes or more.

    Args:
        classes: Foreground maps K.
        width: Factor on every channel count of backbone and attention.
        decoder: Channels of the partial decoder.
        classifier: Whether the unused ImageNet head exists, as in the official checkpoint.
    """

    def __init__(self, classes: int = 1, width: float = 1.0, decoder: int = 32, *, classifier: bool = True) -> None:
        unused = nn.Sequential(nn.Conv2d(1, 3, 1), nn.BatchNorm2d(3))
        super().__init__(
            width, decoder, classifier, backbone="backbone", heads=("_fg", "_bg"), classes=classes, unused=unused
        )

    def maps(self, x: Tensor) -> tuple[Tensor, ...]:
        """Foreground p2, p3, p4, p5, then background p2, p3, p4, p5, each (n, K, h, w)."""
        features, (fg5, bg5) = self._encode(x)
        fg4, bg4 = self._attend(4, features[4], _scale(fg5, 0.25), _scale(bg5, 0.25))
        fg3, bg3 = self._attend(3, features[3], _scale(fg4, 2), _scale(bg4, 2))
        fg2, bg2 = self._attend(2, features[2], _scale(fg3, 2), _scale(bg3, 2))
        foreground = _scale(fg2, 8), _scale(fg3, 16), _scale(fg4, 32), _scale(fg5, 8)
        return *foreground, _scale(bg2, 8), _scale(bg3, 16), _scale(bg4, 32), _scale(bg5, 8)

    def prediction(self, x: Tensor) -> Tensor:
        """The sum of the four foreground maps (n, K, h, w)."""
        return torch.stack(self.maps(x)[:4]).sum(dim=0)

    def _attend(self, level: int, features: Tensor, crop_fg: Tensor, crop_bg: Tensor) -> tuple[Tensor, Tensor]:
        """Foreground f + f·softmax(crop_fg - crop_bg) over the class axis; the background map stays plain."""
        found, background = self._refine(level, features)
        return found + found * torch.softmax(crop_fg - crop_bg, dim=1), background


def _scale(x: Tensor, factor: float) -> Tensor:
    """Bilinear, corners not aligned, no antialias: every resize around the attention."""
    return F.interpolate(x, scale_factor=factor, mode="bilinear", align_corners=False)


@builder("pranet")
def pranet(width: float = 1.0, decoder: int = 32, classifier: bool = True, reverse: bool = True) -> PraNet:
    """PraNet with random weights; the defaults are the official layout (32,547,319 parameters)."""
    return PraNet(width, decoder, classifier=classifier, reverse=reverse)


@builder("pranet-v2")
def pranet_v2(classes: int = 1, width: float = 1.0, decoder: int = 32, classifier: bool = True) -> PraNetV2:
    """PraNet-V2 with random weights; the defaults are the official layout (32,548,842 parameters)."""
    return PraNetV2(classes, width, decoder, classifier=classifier)
