"""Recipes of HieraEdgeNet's demo weights, on synthetic slides: real edges, and the twin whose edges are 0.

Knows how the committed weights are made and measured; its numbers say nothing about real pollen.
"""

from collections.abc import Iterator
from typing import Any, cast

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from fovea_recipes.detection.box_evaluation import to_centres
from fovea_recipes.detection.hieraedgenet.data import KINDS, draw_slide
from fovea_recipes.detection.losses import detection_loss
from fovea_recipes.detection.metrics.boxes import box_average_precision, resampled_map50
from fovea_recipes.training.data.synthetic import DrawnPictures, DrawnRecipe, Split
from fovea_recipes.training.intervals import bootstrap
from fovea_recipes.training.recipe import Batch, Schedule, predict_in_batches, to_tensor
from services.detection.boxes import nms
from services.detection.layers.edge import Edge
from services.detection.models.hieraedgenet_network import STRIDES, HieraEdgeNet

THRESHOLDS = tuple(np.linspace(0.5, 0.95, 10).tolist())


class HieraEdgeNetDemo(
    DrawnRecipe, name="hieraedgenet-demo", weights="hieraedgenet-synthetic-pollen", builds="hieraedgenet", dtype="int8"
):
    """HieraEdgeNet with real edges, eight kinds of pollen, 3.4 million parameters: about 10 minutes on one CPU core."""

    schedule: Schedule = Schedule(
        steps=900, batch=8, rate=1e-3, floor=2e-5, warm_up=100, decay=5e-4, ema=0.998, validate_every=300
    )
    edge: Edge = "described"
    classes: tuple[str, ...] = Field(tuple(KINDS), description="Names of the classes, by id.")
    side: int = Field(192, description="Pixels of a slide.")
    train: int = Field(2500, ge=1, description="Slides to train on.")
    valid: int = Field(60, ge=1, description="Slides that choose the checkpoint.")
    test: int = Field(400, ge=1, description="Slides that are only measured, once.")

    def config(self) -> dict[str, Any]:
        return {"classes": len(self.classes), "edge": self.edge}

    def split(self, name: Split) -> DrawnPictures:
        return self.draw_once(draw_slide, name, self.side)

    def batches(self, step: int, rng: np.random.Generator) -> Iterator[Batch]:
        held = self.split("train")
        chosen = rng.integers(len(held.images), size=self.schedule.batch)
        images, targets = [], []
        for place, index in enumerate(chosen):
            turns, flip = int(rng.integers(4)), bool(rng.random() < 0.5)
            image, rows = rotate_slides(held.images[index], to_centres(held.boxes(index), self.side), turns, flip=flip)
            images.append(image)
            targets.append(np.column_stack((np.full(len(rows), place, np.float32), rows)))
        yield {"image": to_tensor(np.stack(images)), "targets": torch.from_numpy(np.concatenate(targets))}

    def loss(self, network: nn.Module, batch: Batch) -> Tensor:
        image = batch["image"].to(memory_format=torch.channels_last)
        return detection_loss(network(image), batch["targets"], len(self.classes), STRIDES)[0]

    def score(self, network: nn.Module) -> float:
        return self._metrics(network, "valid")["map_50"]

    def measure(self, network: nn.Module) -> dict[str, float]:
        return self._metrics(network, "test")

    def _metrics(self, network: nn.Module, split: Split) -> dict[str, float]:
        held = self.split(split)
        truth = [held.boxes(index) for index in range(len(held.images))]
        made = predict_slides(network, held.images)
        loose = nms(made.numpy(), confidence=0.001, iou=0.7, multi_label=True)
        precision = box_average_precision(truth, loose, THRESHOLDS)
        counts = [len(found) for found in nms(made.numpy())]
        off = np.abs(np.array(counts) - np.array([len(rows) for rows in truth]))
        if split == "test":
            self._intervals = {"map_50": bootstrap(len(truth), resampled_map50(truth, loose))}
        present = np.unique(np.concatenate(truth)[:, 0]).astype(int)
        by_class = {f"ap_50.{self.classes[k]}": float(v) for k, v in zip(present, precision[:, 0], strict=True)}
        found = {"map_50": float(precision[:, 0].mean()), "map_50_95": float(precision.mean())}
        return found | {"count_error": float(off.mean()), "slides": float(len(truth))} | by_class

    def facts(self) -> dict[str, str]:
        return {
            "data": f"synthetic slides of recipes.hieraedgenet.data, {self.side} px, {len(self.classes)} kinds",
            "names": ",".join(self.classes),
            "test_digest": self.split("test").digest,
            "departures": "AdamW for 900 steps from random weights; no mosaic; averaged weights (EMA)",
        }


class HieraEdgeNetOfficialDemo(HieraEdgeNetDemo, name="hieraedgenet-official-demo", weights="hieraedgenet-official"):
    """The twin with the edges of the release, which are 0: what they are worth; measured, not served."""

    edge: Edge = "official"


def predict_slides(network: nn.Module, images: np.ndarray, batch: int = 20) -> Tensor:
    """Decoded boxes (n, 4 + classes, a) of slides (n, h, w, 3)."""
    return predict_in_batches(network, images, to_tensor, batch, cast("HieraEdgeNet", network).predictions)


def rotate_slides(image: np.ndarray, rows: np.ndarray, turns: int, *, flip: bool) -> tuple[np.ndarray, np.ndarray]:
    """A square picture (h, h, 3) turned anticlockwise by quarters, then mirrored or not, and its rows likewise.

    Rows are class, centre x, centre y, width, height in 0..1.
    """
    rows = rows.copy()
    for _ in range(turns % 4):
        rows[:, 1], rows[:, 2] = rows[:, 2].copy(), 1 - rows[:, 1]
        rows[:, 3], rows[:, 4] = rows[:, 4].copy(), rows[:, 3].copy()
    if flip:
        rows[:, 1] = 1 - rows[:, 1]
    image = np.rot90(image, turns)
    return image[:, ::-1] if flip else image, rows
