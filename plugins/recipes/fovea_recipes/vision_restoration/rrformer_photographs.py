"""Recipe of the served RRFormer: reflections made from photographs, by the paper's formulas and by a pane's.

Knows how pairs are drawn and scored; the committed weights were made from CC0 and CC BY photographs by it.
"""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, cast

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from pydantic import Field, PrivateAttr
from torch import Tensor, nn

from fovea_recipes.training.data.class_folders import find_classes
from fovea_recipes.training.data.survey import Survey, near_copies, read_picture
from fovea_recipes.training.folder_recipe import FolderRecipe
from fovea_recipes.training.intervals import mean_interval
from fovea_recipes.training.recipe import Batch, Schedule
from fovea_recipes.vision_restoration.evaluation import (
    gain_by_darkening,
    gain_pairs,
    restore_pairs,
    score_pairs,
    tensor,
)
from fovea_recipes.vision_restoration.glass import behind_glass
from fovea_recipes.vision_restoration.identity_init import start_at_identity
from fovea_recipes.vision_restoration.pairs import ReflectionPairs, to_bits
from fovea_recipes.vision_restoration.synthesis import blend_defocused, blend_varied
from services.vision_restoration.models.rrformer_network import RestorerNetwork

Picture = NDArray[np.uint8]

HARM_DB = 0.5
"""A pair that loses more than this is harmed, dB."""
CHOSEN_BY = 8
"""One of so many photographs of the training side chooses the checkpoint, and is not trained on."""
DARKEST = 16
"""Levels of 255 below which the best darkening is searched, with which the network is compared."""


class RRFormerPhotographs(FolderRecipe, name="rrformer", weights="rrformer-restorer", serves="rrformer"):
    """RRFormer with its tower, 0.9 million parameters, on reflections made from a folder of photographs."""

    origin: ClassVar[str] = "synthetic reflections"

    schedule: Schedule = Schedule(
        steps=9000, batch=6, rate=6e-4, floor=1e-6, warm_up=200, decay=0.01, clip=1.0, ema=0.998, validate_every=300
    )
    data: Path = Field(description="One folder of photographs per source, or `train` and `validation` with these.")
    size: int = Field(128, ge=64, multiple_of=32, description="Side of a crop, pixels.")
    plain: float = Field(0.2, ge=0, le=1, description="Share of pairs without a reflection.")
    formulas: float = Field(0.3, ge=0, le=1, description="Share of pairs that are made by the paper's formulas.")
    edges: float = Field(0.5, ge=0, description="Weight of the L1 of differences between neighbours.")
    harm: float = Field(2.0, ge=0, description="Weight of what is worse than the picture as it came.")
    test: int = Field(120, ge=1, description="Pairs that choose the checkpoint, and as many that are measured.")
    longest: int = Field(1600, ge=128, description="Photographs are scaled down to this, pixels.")

    _train: list[list[Picture]] = PrivateAttr(default_factory=list)
    _choose: list[list[Picture]] = PrivateAttr(default_factory=list)
    _out: list[list[Picture]] = PrivateAttr(default_factory=list)
    _count: int = PrivateAttr(0)
    _held: int = PrivateAttr(0)
    _plain: int = PrivateAttr(0)

    def config(self) -> dict[str, Any]:
        return {
            "variant": "paper", "widths": [16, 32, 64, 64, 64], "whole": False, "features": 48, "body": 64,
            "groups": 4, "blocks": 2, "heads": 4, "buffers": False,
        }  # fmt: skip

    def network(self) -> nn.Module:
        built = cast("RestorerNetwork", super().network())
        if self.start is None:
            start_at_identity(built.net)
        return built

    def gather(self) -> str:
        whole, problems = find_classes(self.data)
        self.require(len(whole), 4, "photographs", problems)
        aside = self.is_held_out(whole.pictures)
        train, out = whole.take(np.flatnonzero(~aside)), whole.take(np.flatnonzero(aside))
        copies = near_copies(train.pictures, out.pictures)
        self._survey = Survey(len(train), len(out), whole.counts, (), problems, copies)
        order, few = np.random.default_rng((self.seed, 2)).permutation(len(train)), len(train) // CHOSEN_BY
        choose, train = train.take(np.sort(order[:few] if few else order)), train.take(np.sort(order[few:]))
        self._count, self._held = len(train), len(out)
        self._train, self._choose, self._out = (
            [
                [self._read(path) for path, label in zip(held.pictures, held.labels, strict=True) if label == source]
                for source in np.unique(held.labels)
            ]
            for held in (train, choose, out)
        )
        return f"train:{train.digest} chosen-by:{choose.digest} held-out:{out.digest}"

    def _read(self, path: Path) -> Picture:
        image = Image.fromarray(read_picture(path))
        image.thumbnail((self.longest, self.longest), Image.Resampling.LANCZOS)
        return np.asarray(image)

    def batches(self, step: int, rng: np.random.Generator) -> Iterator[Batch]:
        drawn = self._pairs(self._train, self.schedule.batch, rng, self.plain)
        yield {"mixed": tensor(drawn.mixed), "clean": tensor(drawn.clean)}

    def _pairs(self, pools: list[list[Picture]], count: int, rng: np.random.Generator, plain: float) -> ReflectionPairs:
        return ReflectionPairs.stack(self._pair(pools, rng, plain) for _ in range(count))

    def _pair(
        self, pools: list[list[Picture]], rng: np.random.Generator, plain: float
    ) -> tuple[Picture, Picture, bool]:
        scene, reflection = self._crop(pools, rng), self._crop(pools, rng)
        if rng.random() < plain:
            return to_bits(scene), to_bits(scene), True
        if rng.random() >= self.formulas:
            mixed, clean = behind_glass(scene, reflection, rng)
        elif rng.random() < 0.5:
            mixed, clean = blend_varied(scene, reflection, rng)
        else:
            mixed, clean = blend_defocused(scene, reflection * np.float32(rng.uniform(0.4, 1)), rng)
        return to_bits(mixed), to_bits(clean), False

    def _crop(self, pools: list[list[Picture]], rng: np.random.Generator) -> NDArray[np.float32]:
        """A square of a photograph of a source that is drawn first, enlarged or not, mirrored or not."""
        pool = pools[rng.integers(len(pools))]
        picture = pool[rng.integers(len(pool))]
        side = min(round(self.size * rng.uniform(0.7, 1.6)), *picture.shape[:2])
        top, left = (int(rng.integers(length - side + 1)) for length in picture.shape[:2])
        crop = Image.fromarray(picture[top : top + side, left : left + side])
        pixels = np.asarray(crop.resize((self.size, self.size), Image.Resampling.BICUBIC))
        pixels = pixels[:, ::-1] if rng.random() < 0.5 else pixels
        return np.ascontiguousarray(pixels, dtype=np.float32) / np.float32(255)

    def loss(self, network: nn.Module, batch: Batch) -> Tensor:
        mixed, clean = batch["mixed"], batch["clean"]
        with self.autocast(mixed):
            found = network(mixed.contiguous(memory_format=torch.channels_last))
        found = found.float()
        error = (found - clean).abs()
        edges = [(found - clean).diff(dim=axis).abs().mean() for axis in (-2, -1)]
        worse = (error - (mixed - clean).abs()).clamp(min=0).mean()
        total: Tensor = error.mean() + self.edges * (edges[0] + edges[1]) + self.harm * worse
        return total

    def score(self, network: nn.Module) -> float:
        held = self._fixed_pairs(self._choose, seed=11)
        scores = score_pairs(restore_pairs(network, held.mixed), held)
        return scores["psnr_gain"] - 0.1 * max(0.0, 40 - scores.get("psnr_clean", 40.0))

    def measure(self, network: nn.Module) -> dict[str, float]:
        held = self._fixed_pairs(self._out, seed=12)
        self._plain = int(held.plain.sum())
        restored = restore_pairs(network, held.mixed)
        gains = gain_pairs(restored, held)
        self._intervals = {"psnr_gain": mean_interval(gains)}
        worst = {"psnr_gain_worst": float(gains.min()), "harmed": float((gains < -HARM_DB).mean())}
        levels = max(range(DARKEST), key=partial(gain_by_darkening, self._fixed_pairs(self._choose, seed=11)))
        darker = {"psnr_gain_darker": gain_by_darkening(held, levels), "darker_levels": float(levels)}
        return score_pairs(restored, held) | worst | darker

    def _fixed_pairs(self, pools: list[list[Picture]], seed: int) -> ReflectionPairs:
        return self._pairs(pools, self.test, np.random.default_rng((self.seed, seed)), 0.15)

    def facts(self) -> dict[str, str]:
        return {
            **self.source_facts(self._held),
            "measured_on": f"{self.test - self._plain} {self.origin} on {self._held} held-out photographs, and "
            f"{self._plain} pictures without one",
            "data": f"reflections made from {self._count} photographs, by formulas B and C and by a pane of glass",
            "departures": "tower trained along; no perceptual and no adversarial loss; starts at identity; what is "
            "worse than the input counts again; averaged weights (EMA)",
        }
