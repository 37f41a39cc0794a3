"""Recipes of the demo weights of PATNet and FasterNet: six classes of pavement patches, same data, steps and seed.

Knows how such weights are made and measured; its numbers say nothing about photographs.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn

from fovea_recipes.detection.patnet.data import NAMES, draw_patch
from fovea_recipes.training.data.synthetic import DrawnPictures, DrawnRecipe, Split
from fovea_recipes.training.recipe import Batch, Schedule, predict_in_batches, to_tensor
from services.detection.servables.patches import MEAN, STD


class FasterNetDemo(
    DrawnRecipe,
    name="fasternet-demo",
    weights="fasternet-synthetic",
    builds="fasternet",
    serves="fasternet",
    dtype="int8",
):
    """FasterNet-T0 with six classes, 2.6 million parameters: two or three minutes on one CPU core."""

    schedule: Schedule = Schedule(
        steps=600, batch=32, rate=1e-3, floor=1e-5, warm_up=100, decay=0.01, ema=0.995, validate_every=200
    )
    classes: tuple[str, ...] = Field(NAMES, description="Names of the classes, by id.")
    side: int = Field(96, description="Pixels of a patch.")
    train: int = Field(6000, ge=6, description="Patches to train on.")
    valid: int = Field(300, ge=6, description="Patches that choose the checkpoint.")
    test: int = Field(1200, ge=6, description="Patches that are only measured, once.")

    def config(self) -> dict[str, Any]:
        return {"size": "t0", "classes": len(self.classes)}

    def split(self, name: Split) -> DrawnPictures:
        return self.draw_once(draw_patch, name, self.side)

    def batches(self, step: int, rng: np.random.Generator) -> Iterator[Batch]:
        held, count = self.split("train"), self.schedule.batch
        chosen = rng.integers(len(held.images), size=count)
        light = torch.from_numpy(rng.uniform(0.8, 1.2, (count, 1, 1, 1)).astype(np.float32))
        image = normalise_patches(held.images[chosen], light)
        for axis in (-1, -2):
            turned = torch.from_numpy(rng.random(count) < 0.5).view(-1, 1, 1, 1)
            image = image.where(~turned, image.flip(axis))
        yield {"image": image, "label": torch.from_numpy(held.truth[chosen])}

    def loss(self, network: nn.Module, batch: Batch) -> Tensor:
        image = batch["image"].to(memory_format=torch.channels_last)
        return F.cross_entropy(network(image), batch["label"], label_smoothing=0.1)

    def score(self, network: nn.Module) -> float:
        held = self.split("valid")
        logits = predict_classes(network, held.images)
        right = float((logits.argmax(1).numpy() == held.truth).mean())
        return right - 1e-3 * float(F.cross_entropy(logits, torch.from_numpy(held.truth)))

    def measure(self, network: nn.Module) -> dict[str, float]:
        held = self.split("test")
        right = predict_classes(network, held.images).argmax(1).numpy() == held.truth
        found = {"top_1": float(right.mean()), "patches": float(len(right))}
        return found | {
            f"recall.{name}": float(right[held.truth == index].mean()) for index, name in enumerate(self.classes)
        }

    def facts(self) -> dict[str, str]:
        return {
            "data": f"synthetic patches of fovea_recipes.detection.patnet.data, {self.side} px, balanced classes",
            "test_digest": self.split("test").digest,
            "departures": "AdamW for 600 steps at 96 px; no mixup, cutmix or RandAugment; averaged weights (EMA)",
        }


class PATNetDemo(FasterNetDemo, name="patnet-demo", weights="patnet-synthetic", builds="patnet", serves="patnet"):
    """PATNet-T0 with six classes, 2.2 million parameters: two or three minutes on one CPU core."""


def normalise_patches(images: NDArray[np.uint8], light: Tensor | float = 1.0) -> Tensor:
    """Patches (n, h, w, 3) as network input (n, 3, h, w), their brightness times `light`."""
    x = (to_tensor(images) * light).clamp(0, 1)
    return (x - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)


def predict_classes(network: nn.Module, images: NDArray[np.uint8], batch: int = 60) -> Tensor:
    """Logits (n, classes) of patches (n, h, w, 3)."""
    return predict_in_batches(network, images, normalise_patches, batch)
