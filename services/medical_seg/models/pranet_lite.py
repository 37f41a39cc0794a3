"""PraNet on EfficientNet-Lite0: PraNet's decoder and reverse attention behind a backbone that has seen photographs.

Knows which backbone stands in for Res2Net-50; the maths is PraNet's own.
"""

from typing import ClassVar

from services.medical_seg.models.polyp_network import PolypNetwork
from services.medical_seg.models.pranet_network import PraNet
from shared.registry import builder
from shared.vision.backbones.efficientnet_lite import EfficientNetLite0


@builder("pranet-lite")
class PraNetLite(PraNet):
    """PraNet whose backbone is EfficientNet-Lite0 (24, 40, 112 and 320 channels at 1/4 to 1/32).

    Args:
        width: Factor on the channels of the attention branches (256 and 64 in the paper).
        decoder: Channels of the partial decoder.
        reverse: False replaces the reverse attention by ones: the ablation "A = 1", never served.
    """

    idle: ClassVar[tuple[str, ...]] = ()

    def __init__(self, width: float = 0.375, decoder: int = 32, *, reverse: bool = True) -> None:
        PolypNetwork.__init__(
            self, width, decoder, classifier=False, backbone="backbone", heads=("",), encoder=EfficientNetLite0()
        )
        self.reverse = reverse
