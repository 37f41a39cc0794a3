"""Recipes of the full-size networks, over a folder of pictures and masks that the user names.

Knows section 5 of the spec: how the published weights were trained. Needs a GPU to end the same week, and a data set
(the papers use 900 pictures of Kvasir-SEG and 550 of CVC-ClinicDB); Fovea ships neither its data nor its results.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import Field, PrivateAttr
from torch import Tensor, nn

from fovea.errors import NotFound
from fovea_recipes.medical_seg.evaluation import PolypRecipe, mean_dice_at_half, normalise_frames, predict_maps
from fovea_recipes.medical_seg.losses import Form, deep_supervision, dual_supervision
from fovea_recipes.training.data.mask_folders import NO_MASK, MaskSet, find_masks
from fovea_recipes.training.recipe import Batch, MultiScale, Schedule


class PraNetFull(PolypRecipe, name="pranet-full", weights="pranet"):
    """PraNet at full size, as published: Adam, three sizes per batch, gradients clamped element by element."""

    # 19 epochs of 1,450 pictures; the published decay of the rate after 50 epochs is never reached.
    schedule: Schedule = Schedule(steps=19 * 91, batch=16, rate=1e-4, floor=1e-4, clamp=0.5, validate_every=91)
    scale: MultiScale = MultiScale(side=352, mode="each")
    folder: Path = Field(description="Training data: images/ and masks/.")
    held_out: Path | None = Field(None, description="Data to measure on; without it, the validation pictures.")
    valid: float = Field(0.05, gt=0, lt=1, description="Share of the training data that chooses the checkpoint.")
    form: Form = Field("paper", description="`released` weighs no pixel in the cross-entropy, like official weights.")
    width: float = 1.0
    decoder: int = 32
    classifier: bool = True

    _train: MaskSet = PrivateAttr(MaskSet((), ()))
    _valid: MaskSet = PrivateAttr(MaskSet((), ()))

    def config(self) -> dict[str, Any]:
        return {"width": self.width, "decoder": self.decoder, "classifier": self.classifier}

    def prepare(self, cache: Path) -> str:
        pairs = _find_pairs(self.folder)
        order = np.random.default_rng(self.seed).permutation(len(pairs))
        aside = max(1, round(self.valid * len(pairs)))
        self._valid, self._train = pairs.take(order[:aside]), pairs.take(order[aside:])
        return pairs.digest

    def batches(self, step: int, rng: np.random.Generator) -> Iterator[Batch]:
        per_epoch = -(-len(self._train) // self.schedule.batch)
        epoch, place = divmod(step, per_epoch)
        order = np.random.default_rng((self.seed, 1, epoch)).permutation(len(self._train))
        images, masks = self._train.take(order[place * self.schedule.batch :][: self.schedule.batch]).load(
            self.scale.side
        )
        image, mask = normalise_frames(images), torch.from_numpy(masks[:, None].astype(np.float32) / 255)
        for side in self.scale.sides(rng):
            yield {"image": self.scale.resize(image, side), "mask": self.scale.resize(mask, side)}

    def loss(self, network: nn.Module, batch: Batch) -> Tensor:
        return deep_supervision(network(batch["image"]), batch["mask"], self.form)

    def score(self, network: nn.Module) -> float:
        images, masks = self._valid.load(self.scale.side)
        return mean_dice_at_half(predict_maps(network, images), masks > 128)

    def measure(self, network: nn.Module) -> dict[str, float]:
        pairs = self._valid if self.held_out is None else _find_pairs(self.held_out)
        images, masks = pairs.load(self.scale.side)
        return self.measure_maps(network, images, masks > 128)

    def facts(self) -> dict[str, str]:
        measured = (
            "the validation pictures, which chose the checkpoint" if self.held_out is None else "a held-out folder"
        )
        return {"data": f"{len(self._train)} training pictures", "measured_on": f"{measured}, at {self.scale.side} px"}


class PraNetV2Full(PraNetFull, name="pranet-v2-full", weights="pranet-v2"):
    """PraNet-V2 at full size, one class, dual supervision: batches of 8, 30 epochs."""

    schedule: Schedule = Schedule(steps=30 * 182, batch=8, rate=1e-4, floor=1e-4, clamp=0.5, validate_every=182)

    def loss(self, network: nn.Module, batch: Batch) -> Tensor:
        return dual_supervision(network(batch["image"]), batch["mask"])


def _find_pairs(folder: Path) -> MaskSet:
    """The pairs of a folder; NotFound if there is none, or a picture has no mask."""
    pairs, problems = find_masks(folder)
    if bare := [each.path.name for each in problems if each.kind == NO_MASK]:
        raise NotFound(f"{len(bare)} pictures of {folder} have no mask, for example {bare[0]!r}.")
    return pairs
