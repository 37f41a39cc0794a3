"""Recipe of the slim demo weights of YOLO9tr: half of the width, trained on synthetic pavement.

Knows how such weights are made and measured; its numbers say nothing about real roads. The committed weights began as
these, and went on with photographs by `yolo9tr_roads`.
"""

from collections.abc import Iterator
from typing import Any, Literal, cast

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from fovea_recipes.detection.box_evaluation import map50, predict_boxes, to_centres
from fovea_recipes.detection.losses import dual_detection_loss
from fovea_recipes.detection.metrics.boxes import box_scores
from fovea_recipes.detection.yolo9tr.data import NAMES, SIDE, draw_scene
from fovea_recipes.training.data.synthetic import DrawnPictures, DrawnRecipe, Split
from fovea_recipes.training.recipe import Batch, Schedule, decay_kernels, to_tensor
from services.detection.models.yolo9tr_network import Yolo9tr


class Yolo9trDemo(
    DrawnRecipe, name="yolo9tr-demo", weights="yolo9tr-synthetic", builds="yolo9tr", serves="yolo9tr", dtype="int8"
):
    """YOLO9tr, size `l`, 1.9 million served parameters: about 20 minutes on one CPU core."""

    schedule: Schedule = Schedule(
        steps=2000, batch=8, rate=1.1e-3, floor=2e-5, warm_up=100, decay=5e-4, ema=0.998, validate_every=500
    )
    size: Literal["s", "l"] = Field("l", description="`s` trains the ablation, whose attention never reaches a box.")
    width: float = 0.5
    side: int = Field(SIDE, ge=64, multiple_of=32, description="Pixels of a scene.")
    train: int = Field(3000, ge=1, description="Scenes to train on.")
    valid: int = Field(100, ge=1, description="Scenes that choose the checkpoint.")
    test: int = Field(500, ge=1, description="Scenes that are only measured, once.")

    def config(self) -> dict[str, Any]:
        return {"classes": len(NAMES), "size": self.size, "width": self.width, "branch": "both"}

    def strip_training_parts(self, network: nn.Module) -> tuple[nn.Module, dict[str, Any]]:
        return keep_main_branch(network, self.config())

    def split(self, name: Split) -> DrawnPictures:
        return self.draw_once(draw_scene, name, self.side)

    def batches(self, step: int, rng: np.random.Generator) -> Iterator[Batch]:
        data = self.split("train")
        chosen = rng.integers(len(data.images), size=self.schedule.batch)
        image = to_tensor(data.images[chosen])
        rows = [np.insert(data.boxes(index), 0, at, axis=1) for at, index in enumerate(chosen)]
        targets = torch.from_numpy(to_centres(np.concatenate(rows).astype(np.float32), self.side))
        for axis, column in ((-1, 2), (-2, 3)):
            turned = torch.from_numpy(rng.random(len(chosen)) < 0.5)
            image = image.where(~turned.view(-1, 1, 1, 1), image.flip(axis))
            mirrored = turned[targets[:, 0].long()]
            targets[:, column] = torch.where(mirrored, 1 - targets[:, column], targets[:, column])
        light, contrast = (torch.from_numpy(rng.uniform(0.7, 1.3, (len(chosen), 1, 1, 1))).float() for _ in range(2))
        grey = image.mean(dim=(1, 2, 3), keepdim=True)
        yield {"image": (((image - grey) * contrast + grey) * light).clamp(0, 1), "targets": targets}

    def loss(self, network: nn.Module, batch: Batch) -> Tensor:
        main, auxiliary = network(batch["image"].to(memory_format=torch.channels_last))
        total, _ = dual_detection_loss(main, auxiliary, batch["targets"], len(NAMES))
        return total

    def score(self, network: nn.Module) -> float:
        return map50(*self._found(network, "valid"))

    def measure(self, network: nn.Module) -> dict[str, float]:
        return box_scores(*self._found(network, "test"), NAMES) | {"scenes": float(self.test)}

    def _found(self, network: nn.Module, split: Split) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Truth and detections of a split."""
        data = self.split(split)
        return [data.boxes(index) for index in range(len(data.images))], predict_boxes(network, data.images)

    def facts(self) -> dict[str, str]:
        return {
            "data": f"synthetic scenes of fovea_recipes.detection.yolo9tr.data, {self.side} px, one to four damages",
            "names": ",".join(NAMES),
            "test_digest": self.split("test").digest,
            "departures": "AdamW, as a short training needs; averaged weights (EMA .998); half of the channels; "
            "no pretrained weights, mosaic or mixup",
        }

    def optimizer(self, network: nn.Module) -> torch.optim.Optimizer:
        return decay_kernels(network, self.schedule)


def keep_main_branch(trained: nn.Module, config: dict[str, Any]) -> tuple[nn.Module, dict[str, Any]]:
    """The served network of both branches: the main one, and its configuration."""
    return cast("Yolo9tr", trained).main_branch().eval(), config | {"branch": "main"}
