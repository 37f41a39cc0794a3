"""`python -m loadtests.bench.baselines.detection cells --data DIR`: SSDLite on the data of one of our detectors.

Pictures, splits, boxes, sizes, mosaics, augmentation, optimiser and measure are those of our recipe, with the knobs of
the manifest beside our weights; only the network and its loss are others. Both networks are measured on the same
held-out pictures, and their difference has an interval by a paired bootstrap.
"""

from __future__ import annotations

import argparse
import json
import platform
from pathlib import Path
from typing import Any, ClassVar, cast

import numpy as np
import torch
import torchvision
from torch import Tensor, nn

import services.detection
from loadtests.bench.baselines.ssdlite import SsdLite
from services.detection.metrics.boxes import box_scores, resampled_map50
from services.detection.recipes.box_recipe import BoxRecipe
from services.detection.recipes.hieraedgenet_cells import HieraEdgeNetCells
from services.detection.recipes.yolo9tr_roads import Yolo9trRoads
from shared.registry import network
from shared.registry.weights import find_weights, read_weights
from shared.training.data.box_sets import BoxSet
from shared.training.intervals import bootstrap
from shared.training.recipe import Batch
from shared.training.trainer import fit

HERE = Path(__file__).parent
WEIGHTS = Path(services.detection.__path__[0]) / "weights"


class SsdLiteRecipe(BoxRecipe):
    """What of a recipe of ours is replaced."""

    backbone_share: ClassVar[float] = 0.3
    """Rate of the backbone, which has been trained before, as a share of that of the rest."""

    @property
    def shown(self) -> BoxSet:
        """The held-out pictures with their boxes."""
        return self._out

    def config(self) -> dict[str, Any]:
        """The data's classes."""
        return {"classes": len(self._train.names)}

    def network(self) -> nn.Module:
        """SSDLite, its backbone from ImageNet."""
        return SsdLite(**self.config())

    def loss(self, network: nn.Module, batch: Batch) -> Tensor:
        """SSD's loss in float32 of a network in bfloat16."""
        image = batch["image"].contiguous(memory_format=torch.channels_last)
        with self.autocast(image):
            maps = network(image)
        return cast("SsdLite", network).batch_loss(maps, batch["targets"], (image.shape[3], image.shape[2]))

    def branch_loss(self, maps: Any, targets: Tensor) -> Tensor:
        """Not used: `loss` needs the size of the pictures."""
        raise NotImplementedError

    def optimizer(self, network: nn.Module) -> torch.optim.Optimizer:
        """As for our networks, with a lower rate for the backbone."""
        trained = [(n.startswith("backbone."), p) for n, p in network.named_parameters() if p.requires_grad]
        groups = [
            {
                "params": [p for mine, p in trained if mine == old and test(p)],
                "weight_decay": decay,
                "share": self.backbone_share if old else 1.0,
            }
            for old in (True, False)
            for test, decay in ((_is_kernel, self.schedule.decay), (_is_vector, 0.0))
        ]
        return torch.optim.AdamW(groups, lr=self.schedule.rate, betas=self.schedule.betas)


class SsdLiteRoads(SsdLiteRecipe, Yolo9trRoads):
    """On the pictures of `yolo9tr`."""

    name: ClassVar[str] = "ssdlite-roads"


class SsdLiteCells(SsdLiteRecipe, HieraEdgeNetCells):
    """On the pictures of `hieraedgenet-cells`."""

    name: ClassVar[str] = "ssdlite-cells"


KINDS: dict[str, tuple[type[SsdLiteRecipe], str]] = {
    "pavement": (SsdLiteRoads, "yolo9tr"),
    "cells": (SsdLiteCells, "hieraedgenet-cells"),
}
"""Data set: the recipe, and the name of our weights."""


def build_recipe(kind: str, data: Path, schedule: dict[str, Any]) -> SsdLiteRecipe:
    """Our recipe's knobs, with another network, no start and another schedule."""
    recipe, weights = KINDS[kind]
    knobs = dict(read_weights(find_weights(weights, WEIGHTS, WEIGHTS)).manifest.recipe)
    for gone in ("name", "others", "foreign", "start"):
        knobs.pop(gone, None)
    return recipe.model_validate(knobs | {"data": data / kind, "start": None, "schedule": knobs["schedule"] | schedule})


def compare(kind: str, data: Path, folder: Path, schedule: dict[str, Any]) -> dict[str, Any]:
    """Train the baseline, measure it and ours on the same held-out pictures."""
    recipe = build_recipe(kind, data, schedule)
    fitted = fit(recipe, folder)
    truth, theirs, _ = recipe.collect_detections(fitted.network, recipe.shown)
    held = read_weights(find_weights(KINDS[kind][1], WEIGHTS, WEIGHTS))
    ours: nn.Module = network(held.manifest.network.name, **held.manifest.network.config)
    ours.load_state_dict({name: torch.from_numpy(array) for name, array in held.arrays.items()})
    _, mine, _ = recipe.collect_detections(ours, recipe.shown)
    first, second = resampled_map50(truth, mine), resampled_map50(truth, theirs)
    everything = np.arange(len(truth))
    steps, seconds = fitted.progress.step, fitted.progress.seconds
    return {
        "baseline": {
            "network": "SSDLite head and feature pyramid on EfficientNet-Lite0 (ImageNet)",
            "parameters": sum(p.numel() for p in fitted.network.parameters()),
            "steps": steps,
            "best_step": fitted.progress.best_step,
            "pictures_seen": steps * recipe.schedule.batch,
            "seconds": round(seconds),
            "validation": fitted.progress.scores,
            "metrics": {name: round(value, 4) for name, value in box_scores(truth, theirs, recipe.shown.names).items()},
            "interval": bootstrap(len(truth), second),
        },
        "ours": {
            "weights": held.manifest.name,
            "sha256": held.manifest.sha256,
            "parameters": sum(p.numel() for p in ours.parameters()),
            "pictures_seen": held.manifest.notes["steps"] * held.manifest.recipe["schedule"]["batch"],
            "map50": round(first(everything), 4),
            "interval": bootstrap(len(truth), first),
        },
        "ours_less_baseline": {
            "map50": round(first(everything) - second(everything), 4),
            "interval": bootstrap(len(truth), lambda indices: first(indices) - second(indices)),
        },
        "pictures": len(truth),
        "data": fitted.data,
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "machine": platform.machine(),
    }


def _is_kernel(parameter: Tensor) -> bool:
    return parameter.ndim > 1


def _is_vector(parameter: Tensor) -> bool:
    return parameter.ndim <= 1


def main() -> None:
    """Train, measure, print, and write `ssdlite_<kind>.json` beside this file."""
    parser = argparse.ArgumentParser(prog="python -m loadtests.bench.baselines.detection", description=__doc__)
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("--data", type=Path, required=True, help="folder that holds pavement/ or cells/")
    parser.add_argument("--folder", type=Path, required=True, help="checkpoints; goes on from what is there")
    parser.add_argument("--steps", type=int, default=700)
    parser.add_argument("--every", type=int, default=100, help="steps between two looks at the validation pictures")
    asked = parser.parse_args()
    schedule = {"steps": asked.steps, "warm_up": min(100, asked.steps // 5), "validate_every": asked.every}
    found = compare(asked.kind, asked.data, asked.folder, schedule)
    text = json.dumps(found, indent=1)
    print(text)
    (HERE / f"ssdlite_{asked.kind}.json").write_text(text + "\n", "utf8")


if __name__ == "__main__":
    main()
