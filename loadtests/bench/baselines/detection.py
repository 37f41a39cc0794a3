"""`python -m loadtests.bench.baselines.detection cells --data DIR`: SSDLite on the data of one of our detectors.

Pictures, splits, boxes, sizes, mosaics, augmentation, optimiser and measure are those of our recipe, with the knobs of
the manifest next to our weights; only the network and its loss are others. Both networks are measured on the same
held-out pictures, and their difference has an interval by a paired bootstrap.
"""

import argparse
from pathlib import Path
from typing import Any, ClassVar, cast

import numpy as np
import torch
from torch import Tensor, nn

from fovea_recipes.detection.box_recipe import BoxRecipe
from fovea_recipes.detection.hieraedgenet_cells import HieraEdgeNetCells
from fovea_recipes.detection.metrics.boxes import box_scores, resampled_map50
from fovea_recipes.detection.yolo9tr_roads import Yolo9trRoads
from fovea_recipes.training.data.box_sets import BoxSet
from fovea_recipes.training.intervals import bootstrap
from fovea_recipes.training.recipe import Batch, decay_kernels
from fovea_recipes.training.trainer import fit
from loadtests.bench.baselines.comparison import (
    describe_machine,
    describe_ours,
    describe_plain,
    parse_arguments,
    read_knobs,
    write,
)
from loadtests.bench.baselines.ssdlite import SsdLite
from loadtests.bench.claiming import open_shipped


class SsdLiteRecipe(BoxRecipe):
    """The parts of our recipe that are replaced."""

    backbone_share: ClassVar[float] = 0.3
    """Rate of the backbone, which has been trained before, as a share of that of the rest."""

    @property
    def shown(self) -> BoxSet:
        """The held-out pictures with their boxes."""
        return self._out

    def config(self) -> dict[str, Any]:
        return {"classes": len(self._train.names)}

    def network(self) -> nn.Module:
        return SsdLite(**self.config())

    def loss(self, network: nn.Module, batch: Batch) -> Tensor:
        image = batch["image"].contiguous(memory_format=torch.channels_last)
        with self.autocast(image):
            maps = network(image)
        return cast("SsdLite", network).batch_loss(maps, batch["targets"], (image.shape[3], image.shape[2]))

    def branch_loss(self, maps: Any, targets: Tensor) -> Tensor:
        raise NotImplementedError

    def optimizer(self, network: nn.Module) -> torch.optim.Optimizer:
        return decay_kernels(network, self.schedule, self.backbone_share)


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
    knobs = read_knobs(weights)
    return recipe.model_validate(knobs | {"data": data / kind, "start": None, "schedule": knobs["schedule"] | schedule})


def compare(kind: str, data: Path, folder: Path, schedule: dict[str, Any]) -> dict[str, Any]:
    """Train the baseline, measure it and ours on the same held-out pictures."""
    recipe = build_recipe(kind, data, schedule)
    fitted = fit(recipe, folder)
    truth, theirs, _ = recipe.collect_detections(fitted.network, recipe.shown)
    ours, manifest = open_shipped(KINDS[kind][1])
    _, mine, _ = recipe.collect_detections(ours, recipe.shown)
    first, second = resampled_map50(truth, mine), resampled_map50(truth, theirs)
    everything = np.arange(len(truth))
    name = "SSDLite head and feature pyramid on EfficientNet-Lite0 (ImageNet)"
    scores = box_scores(truth, theirs, recipe.shown.names)
    return {
        "baseline": {
            **describe_plain(name, fitted, recipe),
            "metrics": {figure: round(value, 4) for figure, value in scores.items()},
            "interval": bootstrap(len(truth), second),
        },
        "ours": {
            **describe_ours(manifest, ours),
            "map50": round(first(everything), 4),
            "interval": bootstrap(len(truth), first),
        },
        "ours_less_baseline": {
            "map50": round(first(everything) - second(everything), 4),
            "interval": bootstrap(len(truth), lambda indices: first(indices) - second(indices)),
        },
        "pictures": len(truth),
        "data": fitted.data,
        **describe_machine(),
    }


def main() -> None:
    """Train, measure, print, and write `ssdlite_<kind>.json` next to this file."""
    parser = argparse.ArgumentParser(prog="python -m loadtests.bench.baselines.detection", description=__doc__)
    parser.add_argument("kind", choices=KINDS)
    asked, schedule = parse_arguments(parser, steps=700)
    write(f"ssdlite_{asked.kind}", compare(asked.kind, asked.data, asked.folder, schedule))


if __name__ == "__main__":
    main()
