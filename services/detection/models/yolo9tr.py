"""YOLO9tr as it is served: boxes of pavement damage. The network is in `yolo9tr_network`."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from services.detection.servables.box_detector import BoxDetector
from shared.registry import Card, Limits, Paper
from shared.registry.measured import measured_card

if TYPE_CHECKING:
    from torch import nn

    from services.detection.models.yolo9tr_network import Yolo9tr


class Yolo9trBoxDetector(BoxDetector):
    """YOLO9tr, served."""

    weights = "yolo9tr"
    card = measured_card(
        Card(
            name="yolo9tr",
            task="detect",
            summary="Boxes of cracks and potholes on photographs of roads, taken from a car.",
            paper=Paper(
                title="YOLO9tr: a lightweight model for pavement damage detection utilizing a generalized efficient "
                "layer aggregation network and attention mechanism",
                venue="Journal of Real-Time Image Processing",
                year=2024,
                url="https://arxiv.org/abs/2406.11254",
            ),
            licence="Code: Apache-2.0, written from a description. Weights: trained on Cracks and Potholes in Road "
            "Images (CC BY 4.0); Apache-2.0 with attribution of that data set. Official code and weights: GPL-3.0.",
            variants=("s", "l"),
            variant="l",
            limits=Limits(max_side=16_384),
            notes=(
                (
                    "Weak: of the damage on unseen roads it finds the minor part. Look for places worth a visit. "
                    "Its served score and calibration were chosen on 31 of the 61 held-out pictures; counts and "
                    "calibration error are of the other 30."
                ),
                (
                    "Trained on photographs of four Brazilian roads (DNIT) at half of the width, from weights for "
                    "drawn pavement; measured on other roads. A watermark in the upper right corner was greyed out. "
                    "Its warnings were taught by smears (BCCD, MIT) and clothes (Clothing dataset (small), CC0)."
                ),
                (
                    "Truth is the boxes of masks whose parts, grown by 10 pixels at 640, touch: a crack is cut into "
                    "boxes by chance, so that precision is a lower bound."
                ),
                (
                    "Does attention reach the answer? In the published size `s` it does not: its three attention "
                    "blocks feed the auxiliary branch, which only training reads, and zeroing them moves served boxes "
                    "by exactly 0. Served here is size `l`, with attention on both branches: zeroing it changes the "
                    "boxes."
                ),
                (
                    "Only the main branch is served, with batch norms folded in: the boxes are those of the whole "
                    "network. What overlaps is suppressed outside of the graph, by the request's own `iou`."
                ),
            ),
            example={},
        ),
        BoxDetector.folder,
    )

    @staticmethod
    def prepare(network: nn.Module) -> nn.Module:
        return BoxDetector.prepare(cast("Yolo9tr", network).main_branch())
