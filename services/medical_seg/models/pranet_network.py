"""PraNet and PraNet-V2: polyp segmentation by reverse attention, as networks.

Knows the maths of both papers and the layout of both official checkpoints, key for key. Knows nothing about pictures:
inputs are normalised tensors, outputs raw logits.
"""

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from services.medical_seg.models.polyp_network import LEVELS, PolypNetwork, rescale
from shared.registry import builder
from shared.vision.backbones.pooling import pool_levels


@builder("pranet")
class PraNet(PolypNetwork):
    """PraNet (Fan et al., MICCAI 2020): a coarse map, refined three times where it is not yet sure of a polyp.

    The defaults are the official layout (32,547,319 parameters).

    Args:
        width: Factor on every channel count of backbone and attention.
        decoder: Channels of the partial decoder.
        classifier: Whether the unused ImageNet head exists, as in the official checkpoint.
        reverse: False replaces the reverse attention by ones: the ablation "A = 1", never served.
    """

    idle: ClassVar[tuple[str, ...]] = ("resnet.fc.",)

    def __init__(self, width: float = 1.0, decoder: int = 32, *, classifier: bool = True, reverse: bool = True) -> None:
        super().__init__(width, decoder, classifier, backbone="resnet", heads=("",))
        self.reverse = reverse

    def maps(self, x: Tensor) -> tuple[Tensor, ...]:
        return self._refined(*self._encode(x))

    def _refined(self, features: Mapping[int, Tensor], coarse: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        (s5,) = coarse
        s4 = self._attend(4, features[4], rescale(s5, 0.25))
        s3 = self._attend(3, features[3], rescale(s4, 2))
        s2 = self._attend(2, features[2], rescale(s3, 2))
        return rescale(s5, 8), rescale(s4, 32), rescale(s3, 16), rescale(s2, 8)

    def prediction(self, x: Tensor) -> Tensor:
        return self.maps(x)[-1]

    def prediction_and_features(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """`prediction`, and the mean of each channel of the backbone's three deepest levels (n, c)."""
        features, coarse = self._encode(x)
        return self._refined(features, coarse)[-1], pool_levels([features[level] for level in LEVELS])

    def _attend(self, level: int, features: Tensor, crop: Tensor) -> Tensor:
        """Refine `crop` by what the features show outside of it: A = 1 - sigmoid(crop)."""
        attended = features * (1 - torch.sigmoid(crop)) if self.reverse else features
        return self._refine(level, attended)[0] + crop


@builder("pranet-v2")
class PraNetV2(PolypNetwork):
    """PraNet-V2 (2025): foreground and background maps, the one attending to the difference of both.

    With `classes=1` the softmax over classes is 1 everywhere, so the attention only doubles each foreground map:
    the variant matters with two classes or more. The defaults are the official layout (32,548,842 parameters).

    Args:
        classes: Foreground maps K.
        width: Factor on every channel count of backbone and attention.
        decoder: Channels of the partial decoder.
        classifier: Whether the unused ImageNet head exists, as in the official checkpoint.
    """

    idle = ("conv.", "backbone.fc.")

    def __init__(self, classes: int = 1, width: float = 1.0, decoder: int = 32, *, classifier: bool = True) -> None:
        unused = nn.Sequential(nn.Conv2d(1, 3, 1), nn.BatchNorm2d(3))
        super().__init__(
            width, decoder, classifier, backbone="backbone", heads=("_fg", "_bg"), classes=classes, unused=unused
        )

    def maps(self, x: Tensor) -> tuple[Tensor, ...]:
        features, (fg5, bg5) = self._encode(x)
        fg4, bg4 = self._attend(4, features[4], rescale(fg5, 0.25), rescale(bg5, 0.25))
        fg3, bg3 = self._attend(3, features[3], rescale(fg4, 2), rescale(bg4, 2))
        fg2, bg2 = self._attend(2, features[2], rescale(fg3, 2), rescale(bg3, 2))
        foreground = rescale(fg2, 8), rescale(fg3, 16), rescale(fg4, 32), rescale(fg5, 8)
        return *foreground, rescale(bg2, 8), rescale(bg3, 16), rescale(bg4, 32), rescale(bg5, 8)

    def prediction(self, x: Tensor) -> Tensor:
        return torch.stack(self.maps(x)[:4]).sum(dim=0)

    def _attend(self, level: int, features: Tensor, crop_fg: Tensor, crop_bg: Tensor) -> tuple[Tensor, Tensor]:
        """Foreground f + f·softmax(crop_fg - crop_bg) over the class axis; the background map stays plain."""
        found, background = self._refine(level, features)
        return found + found * torch.softmax(crop_fg - crop_bg, dim=1), background
