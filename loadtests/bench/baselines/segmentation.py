"""`python -m loadtests.bench.baselines.segmentation --data DIR`: a plain segmenter on the data of our PraNet.

Pictures, splits, sizes, augmentation, optimiser, loss of a map and measure are those of our recipe, with the knobs of
the manifest beside our weights; only the network is another. Both networks are measured on the same held-out frames,
and their difference has an interval by a paired bootstrap.
"""

from __future__ import annotations

import argparse
import json
import platform
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import torchvision
from numpy.typing import NDArray
from torch import nn

import services.medical_seg
from loadtests.bench.baselines.semantic_fpn import SemanticFpn
from services.medical_seg.recipes.evaluation import mean_dice_at_half, predict_maps
from services.medical_seg.recipes.pranet_lite import PraNetLiteRecipe
from shared.registry import network
from shared.registry.weights import find_weights, read_weights
from shared.training.intervals import mean_interval
from shared.training.trainer import fit

HERE = Path(__file__).parent
WEIGHTS = Path(services.medical_seg.__path__[0]) / "weights"
OURS = "pranet"


class SemanticFpnRecipe(PraNetLiteRecipe):
    """Our recipe with another network."""

    name: ClassVar[str] = "semantic-fpn"

    def config(self) -> dict[str, Any]:
        """It has no knobs."""
        return {}

    def network(self) -> nn.Module:
        """With ImageNet weights in the backbone, as ours."""
        return SemanticFpn()

    def dice(self, network_: nn.Module) -> NDArray[np.float64]:
        """Dice at .5 of each held-out frame (n,) with a polyp."""
        images, masks = self._out.load(self.scale.side)
        maps, marked = predict_maps(network_, images), masks > 128
        some = np.flatnonzero(marked.any((1, 2)))
        return np.array([mean_dice_at_half(maps[at : at + 1], marked[at : at + 1]) for at in some])


def build_recipe(data: Path, schedule: dict[str, Any]) -> SemanticFpnRecipe:
    """Our recipe's knobs, with another schedule."""
    knobs = dict(read_weights(find_weights(OURS, WEIGHTS, WEIGHTS)).manifest.recipe)
    for gone in ("name", "others", "foreign", "start", "width", "decoder"):
        knobs.pop(gone, None)
    return SemanticFpnRecipe.model_validate(knobs | {"data": data / "polyps", "schedule": knobs["schedule"] | schedule})


def compare(data: Path, folder: Path, schedule: dict[str, Any]) -> dict[str, Any]:
    """Train the baseline, measure it and ours on the same held-out frames."""
    recipe = build_recipe(data, schedule)
    fitted = fit(recipe, folder)
    held = read_weights(find_weights(OURS, WEIGHTS, WEIGHTS))
    ours: nn.Module = network(held.manifest.network.name, **held.manifest.network.config)
    ours.load_state_dict({name: torch.from_numpy(array) for name, array in held.arrays.items()})
    mine, theirs = recipe.dice(ours), recipe.dice(fitted.network)
    return {
        "baseline": {
            "network": "Semantic FPN on EfficientNet-Lite0 (ImageNet)",
            "steps": fitted.progress.step,
            "best_step": fitted.progress.best_step,
            "pictures_seen": fitted.progress.step * recipe.schedule.batch,
            "seconds": round(fitted.progress.seconds),
            "validation": fitted.progress.scores,
            **_describe(fitted.network, theirs),
        },
        "ours": {
            "weights": held.manifest.name,
            "sha256": held.manifest.sha256,
            "pictures_seen": held.manifest.notes["steps"] * held.manifest.recipe["schedule"]["batch"],
            **_describe(ours, mine),
        },
        "ours_less_baseline": {
            "mean": round(float((mine - theirs).mean()), 4),
            "interval": mean_interval(mine - theirs),
        },
        "frames": len(mine),
        "data": fitted.data,
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "machine": platform.machine(),
    }


def _describe(network_: nn.Module, dice: NDArray[np.float64]) -> dict[str, Any]:
    return {
        "parameters": sum(p.numel() for p in network_.parameters()),
        "mean_dice": round(float(dice.mean()), 4),
        "median_dice": round(float(np.median(dice)), 4),
        "missed": int((dice < 0.5).sum()),
        "interval": mean_interval(dice),
    }


def main() -> None:
    """Train, measure, print, and write `semantic_fpn_polyps.json` beside this file."""
    parser = argparse.ArgumentParser(prog="python -m loadtests.bench.baselines.segmentation", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder that holds polyps/")
    parser.add_argument("--folder", type=Path, required=True, help="checkpoints; goes on from what is there")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--every", type=int, default=100, help="steps between two looks at the validation frames")
    asked = parser.parse_args()
    schedule = {"steps": asked.steps, "warm_up": min(100, asked.steps // 5), "validate_every": asked.every}
    text = json.dumps(compare(asked.data, asked.folder, schedule), indent=1)
    print(text)
    (HERE / "semantic_fpn_polyps.json").write_text(text + "\n", "utf8")


if __name__ == "__main__":
    main()
