"""`python -m loadtests.bench.baselines.segmentation --data DIR`: a plain segmenter on the data of our PraNet.

Pictures, splits, sizes, augmentation, optimiser, loss of a map and measure are those of our recipe, with the knobs of
the manifest next to our weights; only the network is another. Both networks are measured on the same held-out frames,
and their difference has an interval by a paired bootstrap.
"""

import argparse
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from torch import nn

from fovea_recipes.medical_seg.evaluation import mean_dice_at_half, predict_maps
from fovea_recipes.medical_seg.pranet_lite import PraNetLiteRecipe
from fovea_recipes.training.intervals import mean_interval
from fovea_recipes.training.trainer import fit
from loadtests.bench.baselines.comparison import (
    describe_machine,
    describe_ours,
    describe_plain,
    parse_arguments,
    read_knobs,
    write,
)
from loadtests.bench.baselines.semantic_fpn import SemanticFpn
from loadtests.bench.claiming import open_shipped

OURS = "pranet"


class SemanticFpnRecipe(PraNetLiteRecipe):
    """Our recipe with another network."""

    name: ClassVar[str] = "semantic-fpn"

    def config(self) -> dict[str, Any]:
        return {}

    def network(self) -> nn.Module:
        return SemanticFpn()

    def dice(self, network_: nn.Module) -> NDArray[np.float64]:
        """Dice at 0.5 of each held-out frame (n,) with a polyp."""
        images, masks = self._out.load(self.scale.side)
        maps, marked = predict_maps(network_, images), masks > 128
        some = np.flatnonzero(marked.any((1, 2)))
        return np.array([mean_dice_at_half(maps[at : at + 1], marked[at : at + 1]) for at in some])


def build_recipe(data: Path, schedule: dict[str, Any]) -> SemanticFpnRecipe:
    """Our recipe's knobs, with another schedule."""
    knobs = read_knobs(OURS, ("width", "decoder"))
    return SemanticFpnRecipe.model_validate(knobs | {"data": data / "polyps", "schedule": knobs["schedule"] | schedule})


def compare(data: Path, folder: Path, schedule: dict[str, Any]) -> dict[str, Any]:
    """Train the baseline, measure it and ours on the same held-out frames."""
    recipe = build_recipe(data, schedule)
    fitted = fit(recipe, folder)
    ours, manifest = open_shipped(OURS)
    mine, theirs = recipe.dice(ours), recipe.dice(fitted.network)
    return {
        "baseline": describe_plain("Semantic FPN on EfficientNet-Lite0 (ImageNet)", fitted, recipe)
        | _summarise(theirs),
        "ours": describe_ours(manifest, ours) | _summarise(mine),
        "ours_less_baseline": {
            "mean_dice": round(float((mine - theirs).mean()), 4),
            "interval": mean_interval(mine - theirs),
        },
        "pictures": len(mine),
        "data": fitted.data,
        **describe_machine(),
    }


def _summarise(dice: NDArray[np.float64]) -> dict[str, Any]:
    median, missed = round(float(np.median(dice)), 4), int((dice < 0.5).sum())
    metrics = {"mean_dice": round(float(dice.mean()), 4), "median_dice": median, "missed": missed}
    return {"metrics": metrics, "interval": mean_interval(dice)}


def main() -> None:
    """Train, measure, print, and write `semantic_fpn_polyps.json` next to this file."""
    parser = argparse.ArgumentParser(prog="python -m loadtests.bench.baselines.segmentation", description=__doc__)
    asked, schedule = parse_arguments(parser, steps=600)
    write("semantic_fpn_polyps", compare(asked.data, asked.folder, schedule))


if __name__ == "__main__":
    main()
