"""Recipe of the slim demo weights: RRFormer and its tower at a fifth of the width, trained together.

Knows how the committed weights are made and measured. No ImageNet weights come with Fovea, so the tower learns with the
network instead of being frozen.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field, PrivateAttr
from torch import Tensor, nn

from fovea_recipes.training.recipe import Batch, Recipe, Schedule
from fovea_recipes.vision_restoration.evaluation import restore_pairs, score_pairs, tensor
from fovea_recipes.vision_restoration.identity_init import start_at_identity
from fovea_recipes.vision_restoration.losses import pixel_loss
from fovea_recipes.vision_restoration.pairs import ReflectionPairs, ReflectionSources, sources
from fovea_recipes.vision_restoration.photographs import Split
from services.vision_restoration.models.rrformer_network import RestorerNetwork
from services.vision_restoration.variant import Variant


class RRFormerDemo(
    Recipe, name="rrformer-demo", weights="rrformer-synthetic", builds="rrformer-restorer", serves="rrformer"
):
    """RRFormer, 652 thousand parameters with its tower: about 35 minutes on one CPU core."""

    schedule: Schedule = Schedule(
        steps=2400, batch=4, rate=6e-4, floor=1e-5, warm_up=100, decay=0.01, clamp=0.5, ema=0.99, validate_every=250
    )
    variant: Variant = "paper"
    size: int = Field(96, ge=64, description="Side of a training crop, pixels.")
    held: int = Field(128, ge=64, description="Side of the held-out crops, pixels.")
    scenes: int = Field(400, ge=1, description="Procedural scenes to train on, next to the photographs.")
    plain: float = Field(0.2, ge=0, le=1, description="Share of training pairs without a reflection; held out: 0.1.")
    even: float = Field(1.0, ge=0, description="Weight of the plain L1 that is added to the paper's pixel loss.")
    valid: int = Field(40, ge=1, description="Pairs that choose the checkpoint.")
    test: int = Field(200, ge=1, description="Pairs that are only measured, once.")

    _sources: ReflectionSources | None = PrivateAttr(None)
    _valid: ReflectionPairs | None = PrivateAttr(None)

    def config(self) -> dict[str, Any]:
        return {
            "variant": self.variant, "widths": [16, 32, 64, 64, 64], "whole": False, "features": 48, "body": 48,
            "groups": 3, "blocks": 2, "heads": 4, "buffers": False,
        }  # fmt: skip

    def network(self) -> nn.Module:
        built = cast("RestorerNetwork", super().network())
        start_at_identity(built.net)
        return built

    def prepare(self, cache: Path) -> str:
        self._sources = sources("train", self.scenes, self.seed)
        self._valid = self.pairs("valid")
        return f"train:{self._sources.digest} valid:{sources('valid', 40, self.seed).digest}"

    def pairs(self, split: Split) -> ReflectionPairs:
        """The pairs of a held-out split."""
        count, rng = {"valid": self.valid, "test": self.test}[split], np.random.default_rng((self.seed, 11))
        return sources(split, max(40, count // 2), self.seed).pairs(rng, count, self.held, plain=0.1)

    def batches(self, step: int, rng: np.random.Generator) -> Iterator[Batch]:
        if self._sources is None:
            self._sources = sources("train", self.scenes, self.seed)
        drawn = self._sources.pairs(rng, self.schedule.batch, self.size, self.plain)
        yield {"mixed": tensor(drawn.mixed), "clean": tensor(drawn.clean)}

    def loss(self, network: nn.Module, batch: Batch) -> Tensor:
        found = network(batch["mixed"].contiguous(memory_format=torch.channels_last))
        return pixel_loss(found, batch["clean"]) + self.even * F.l1_loss(found, batch["clean"])

    def score(self, network: nn.Module) -> float:
        held = self._valid or self.pairs("valid")
        scores = score_pairs(restore_pairs(network, held.mixed), held)
        share = scores["clean_pairs"] / scores["pairs"]
        return (1 - share) * scores["psnr"] + share * scores.get("psnr_clean", 0.0)

    def measure(self, network: nn.Module) -> dict[str, float]:
        held = self.pairs("test")
        return score_pairs(restore_pairs(network, held.mixed), held)

    def facts(self) -> dict[str, str]:
        return {
            "data": f"formula C over packaged photographs and procedural scenes; crops of {self.size} px, held out "
            f"{self.held} px",
            "test_sources": sources("test", max(40, self.test // 2), self.seed).digest,
            "departures": "tower trained along; no perceptual and no adversarial loss; L1 added; starts at identity; "
            "averaged weights (EMA)",
        }
