"""Parts shared by comparisons with a plain network: our weights, their knobs, and the report.

Knows manifests and fitted networks; knows no task.
"""

import argparse
import json
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import nn

from fovea_recipes.training.recipe import Recipe
from fovea_recipes.training.trainer import FitResult
from shared.registry.discovery import shipped_weights
from shared.registry.weights import Manifest, read_manifest

HERE = Path(__file__).parent


def read_knobs(name: str, gone: tuple[str, ...] = ()) -> dict[str, Any]:
    """Knobs of our weights, less those that another network or another place has no use for."""
    knobs = dict(read_manifest(shipped_weights()[name]).recipe)
    for knob in ("name", "others", "foreign", "start", *gone):
        knobs.pop(knob, None)
    return knobs


def describe_plain(name: str, fitted: FitResult, recipe: Recipe) -> dict[str, Any]:
    """How the plain network came about."""
    progress = fitted.progress
    return {
        "network": name,
        "parameters": _count(fitted.network),
        "steps": progress.step,
        "best_step": progress.best_step,
        "pictures_seen": progress.step * recipe.schedule.batch,
        "seconds": round(progress.seconds),
        "validation": progress.scores,
    }


def describe_ours(manifest: Manifest, ours: nn.Module) -> dict[str, Any]:
    """Which weights of ours, and what they were shown in their last training."""
    return {
        "weights": manifest.name,
        "sha256": manifest.sha256,
        "parameters": _count(ours),
        "pictures_seen": manifest.notes["steps"] * manifest.recipe["schedule"]["batch"],
    }


def describe_machine() -> dict[str, str]:
    """Libraries and processor."""
    return {"torch": torch.__version__, "torchvision": torchvision.__version__, "machine": platform.machine()}


def parse_arguments(parser: argparse.ArgumentParser, steps: int) -> tuple[argparse.Namespace, dict[str, int]]:
    """The request, and the schedule that follows from it.

    Args:
        parser: May have arguments of its own.
        steps: How many there are where nobody says.
    """
    parser.add_argument("--data", type=Path, required=True, help="folder that holds the data sets' folders")
    parser.add_argument("--folder", type=Path, required=True, help="checkpoints; goes on from what is there")
    parser.add_argument("--steps", type=int, default=steps)
    parser.add_argument("--every", type=int, default=100, help="steps between two looks at the validation pictures")
    asked = parser.parse_args()
    schedule = {"steps": asked.steps, "warm_up": min(100, asked.steps // 5), "validate_every": asked.every}
    return asked, schedule


def write(name: str, found: Mapping[str, Any]) -> None:
    """Print what was found, and write it to `<name>.json` next to this file."""
    text = json.dumps(found, indent=1)
    print(text)
    (HERE / f"{name}.json").write_text(text + "\n", "utf8")


def _count(network_: nn.Module) -> int:
    return sum(p.numel() for p in network_.parameters())
