"""Recipes of the slim demo weights: PraNet and PraNet-V2 at a quarter of the width, on synthetic frames.

Knows how the committed weights are made and measured; its numbers say nothing about real endoscopy.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from fovea_recipes.medical_seg.evaluation import PolypRecipe, mean_dice_at_half, normalise_frames, predict_maps
from fovea_recipes.medical_seg.losses import deep_supervision, dual_supervision
from fovea_recipes.medical_seg.polyps import draw_frame
from fovea_recipes.training.data.synthetic import DrawnPictures, DrawnRecipe, Split
from fovea_recipes.training.recipe import Batch, MultiScale, Schedule


class PraNetDemo(
    PolypRecipe,
    DrawnRecipe,
    name="pranet-demo",
    weights="pranet-synthetic",
    builds="pranet",
    serves="pranet",
    dtype="int8",
):
    """PraNet, 2.06 million parameters, `paper` loss: about 40 minutes on one CPU core."""

    schedule: Schedule = Schedule(
        steps=3000, batch=16, rate=3e-4, floor=1e-5, decay=0.01, clamp=0.5, ema=0.995, validate_every=250
    )
    scale: MultiScale = MultiScale(side=160)
    width: float = 0.25
    decoder: int = 16
    train: int = Field(4000, ge=1, description="Frames to train on.")
    valid: int = Field(100, ge=1, description="Frames that choose the checkpoint.")
    test: int = Field(400, ge=1, description="Frames that are only measured, once.")
    reverse: bool = Field(True, description="False trains the ablation: reverse attention replaced by ones.")

    def config(self) -> dict[str, Any]:
        slim = {"width": self.width, "decoder": self.decoder, "classifier": False}
        return slim if self.reverse else slim | {"reverse": False}

    def split(self, name: Split) -> DrawnPictures:
        return self.draw_once(draw_frame, name, self.scale.side)

    def batches(self, step: int, rng: np.random.Generator) -> Iterator[Batch]:
        data = self.split("train")
        chosen = rng.integers(len(data.images), size=self.schedule.batch)
        image = normalise_frames(data.images[chosen])
        mask = torch.from_numpy(data.truth[chosen, None].astype(np.float32))
        for axis in (-1, -2):
            turned = torch.from_numpy(rng.random(self.schedule.batch) < 0.5).view(-1, 1, 1, 1)
            image, mask = image.where(~turned, image.flip(axis)), mask.where(~turned, mask.flip(axis))
        for side in self.scale.sides(rng):
            yield {"image": self.scale.resize(image, side), "mask": self.scale.resize(mask, side)}

    def loss(self, network: nn.Module, batch: Batch) -> Tensor:
        image = batch["image"].to(memory_format=torch.channels_last)
        return deep_supervision(network(image), batch["mask"])

    def score(self, network: nn.Module) -> float:
        data = self.split("valid")
        return mean_dice_at_half(predict_maps(network, data.images), data.truth)

    def measure(self, network: nn.Module) -> dict[str, float]:
        data = self.split("test")
        return self.measure_maps(network, data.images, data.truth)

    def facts(self) -> dict[str, str]:
        return {
            "data": f"synthetic frames of fovea_recipes.medical_seg.polyps, {self.scale.side} px, one in ten empty",
            "test_digest": self.split("test").digest,
            "loss": "paper",
            "departures": "averaged weights (EMA); no pretrained backbone; a quarter of the channels",
        }


class PraNetV2Demo(PraNetDemo, name="pranet-v2-demo", weights="pranet-v2", builds="pranet-v2", serves="pranet-v2"):
    """PraNet-V2 with one class, dual supervision."""

    def loss(self, network: nn.Module, batch: Batch) -> Tensor:
        image = batch["image"].to(memory_format=torch.channels_last)
        return dual_supervision(network(image), batch["mask"])

    def facts(self) -> dict[str, str]:
        return {**super().facts(), "loss": "paper on the foreground maps, 0.8 BCE on the background maps"}
