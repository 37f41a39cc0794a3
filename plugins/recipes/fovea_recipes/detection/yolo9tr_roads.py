"""Recipe of YOLO9tr on photographs of roads, or on any folder of pictures with boxes.

Knows the network and its two branches; the committed weights were made from photographs of Brazilian roads by it.
"""

from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn

from fovea_recipes.detection.box_recipe import BoxRecipe
from fovea_recipes.detection.losses import dual_detection_loss
from fovea_recipes.detection.yolo9tr.recipe import keep_main_branch
from fovea_recipes.training.data.augment import Augment
from fovea_recipes.training.recipe import MultiScale, Schedule
from services.detection.boxes.letterbox import GREY

Part = tuple[float, float, float, float]


class Yolo9trRoads(BoxRecipe, name="yolo9tr", weights="yolo9tr", serves="yolo9tr", dtype="int8"):
    """YOLO9tr, size `l` at half the width, on a folder of your own."""

    square: ClassVar[bool] = False

    schedule: Schedule = Schedule(
        steps=6000, batch=8, rate=1e-3, floor=1e-5, warm_up=200, decay=1e-2, clip=10.0, ema=0.998, validate_every=250
    )
    side: int = 640
    scale: MultiScale = MultiScale(side=640, rates=(0.5, 0.6), multiple=32)
    augment: Augment = Augment(flip_y=0.0, turn=3.0, zoom=(0.8, 1.5), stretch=0.2, shift=0.3)
    mosaic: float = 0.3
    choose: int = 60
    size: Literal["s", "l"] = Field("l", description="`s` has attention on the auxiliary branch alone.")
    width: float = 0.5
    cover: Part | None = Field(None, description="Part to grey out (a watermark): x1, y1, x2, y2 as shares.")

    def config(self) -> dict[str, Any]:
        return {"classes": len(self._train.names), "size": self.size, "width": self.width, "branch": "both"}

    def strip_training_parts(self, network: nn.Module) -> tuple[nn.Module, dict[str, Any]]:
        return keep_main_branch(network, self.config())

    def read(self, path: Path) -> NDArray[np.uint8]:
        pixels = super().read(path)
        if self.cover is not None:
            pixels = pixels.copy()
            (height, width), (x1, y1, x2, y2) = pixels.shape[:2], self.cover
            pixels[int(y1 * height) : int(y2 * height), int(x1 * width) : int(x2 * width)] = GREY
        return pixels

    def _canvas(self, side: int) -> tuple[int, int]:
        return self.side, self.side

    def branch_loss(self, maps: Any, targets: Tensor) -> Tensor:
        main, auxiliary = ([level.float() for level in branch] for branch in maps)
        return dual_detection_loss(main, auxiliary, targets, len(self._train.names))[0]
