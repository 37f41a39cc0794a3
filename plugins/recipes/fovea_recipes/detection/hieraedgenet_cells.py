"""Recipe of HieraEdgeNet on blood smears, or on any folder of microscope pictures with boxes.

Knows the network and its one branch; the committed weights were made from BCCD by it.
"""

from typing import Any

from pydantic import Field
from torch import Tensor

from fovea_recipes.detection.box_recipe import BoxRecipe
from fovea_recipes.detection.losses import detection_loss
from fovea_recipes.training.data.augment import Augment
from fovea_recipes.training.recipe import MultiScale, Schedule
from services.detection.layers.edge import Edge
from services.detection.models.hieraedgenet_network import STRIDES


class HieraEdgeNetCells(
    BoxRecipe,
    name="hieraedgenet-cells",
    weights="hieraedgenet-cells",
    builds="hieraedgenet",
    serves="hieraedgenet-cells",
):
    """HieraEdgeNet with real edges, 3.4 million parameters, on a folder of your own."""

    schedule: Schedule = Schedule(
        steps=5000, batch=8, rate=1e-3, floor=1e-5, warm_up=200, decay=1e-2, clip=10.0, ema=0.998, validate_every=250
    )
    side: int = 320
    scale: MultiScale = MultiScale(side=320, rates=(1.0,))
    augment: Augment = Augment(quarters=True, zoom=(0.75, 1.5), stretch=0.1)
    edge: Edge = "described"
    start: str | None = Field(
        "hieraedgenet-synthetic-pollen", description="Weights to start from: layers of equal shape are taken."
    )

    def config(self) -> dict[str, Any]:
        return {"classes": len(self._train.names), "edge": self.edge}

    def branch_loss(self, maps: Any, targets: Tensor) -> Tensor:
        return detection_loss([level.float() for level in maps], targets, len(self._train.names), STRIDES)[0]
