"""From a finished fit to weights that others can trust: rounded, measured as they will be served, and described.

Knows recipes and the manifest's fields; knows no model.
"""

import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from fovea_recipes.training.recipe import Recipe
from fovea_recipes.training.trainer import FitResult
from shared.registry.weights import SCALE, Dtype, Manifest, NetworkSpec, pack_kernels, unpack_kernels, write_weights

_LIBRARIES = ("fovea-platform", "torch", "numpy", "scipy", "pillow")


def publish(
    recipe: Recipe, fitted: FitResult, folder: Path, *, name: str | None = None, notes: Mapping[str, Any] | None = None
) -> Manifest:
    """Round the weights, measure exactly those on held-out data, and write `<name>.safetensors` and `<name>.json`.

    The network of `fitted` holds the rounded weights afterwards. Without a name they have the recipe's; `notes` are
    further facts for a reader of the manifest, for example an ablation that was measured next to it.
    """
    _round(fitted.network, recipe.dtype)
    network, config = recipe.strip_training_parts(fitted.network)
    metrics = recipe.measure(network)
    found = recipe.calibrate(network)
    metrics |= found.metrics
    progress, own = fitted.progress, name or recipe.weights
    manifest = Manifest(
        name=own,
        origin="trained",
        dtype=recipe.dtype,
        network=NetworkSpec(name=recipe.builds or recipe.weights, config=config),
        parameters=sum(p.numel() for p in network.parameters()),
        recipe={"name": recipe.name, **recipe.model_dump(mode="json")},
        data={"digest": fitted.data, **recipe.facts()},
        code=code_facts(),
        metrics={key: round(value, 5) for key, value in metrics.items()},
        intervals={key: (round(low, 4), round(high, 4)) for key, (low, high) in recipe.intervals().items()},
        constants=found.constants,
        serves=recipe.serves if own != recipe.serves else None,
        notes={
            "steps": progress.step,
            "best_step": progress.best_step,
            "validation_score": round(progress.best, 5),
            "training_seconds": round(progress.seconds),
            "pictures_per_second": round(progress.step * recipe.schedule.batch / max(progress.seconds, 1e-9), 2),
            **found.notes,
            **(notes or {}),
        },
    )
    return write_weights(folder, arrays_of(network) | found.arrays, manifest)


def arrays_of(network: nn.Module) -> dict[str, np.ndarray]:
    """The state dict as numpy arrays, by key."""
    return {key: tensor.detach().cpu().contiguous().numpy() for key, tensor in network.state_dict().items()}


def code_facts() -> dict[str, str]:
    """Versions of what computes: enough to explain a difference in the last digits."""
    facts = {"python": platform.python_version(), "machine": platform.machine()}
    for library in _LIBRARIES:
        try:
            facts[library] = version(library)
        except PackageNotFoundError:
            continue
    return facts


@torch.no_grad()
def _round(network: nn.Module, dtype: Dtype) -> None:
    """Round every float in place to what its file will hold, so that what is measured is what is stored."""
    packed = pack_kernels(arrays_of(network)) if dtype == "int8" else {}
    kernels = unpack_kernels(packed)
    for key, tensor in network.state_dict().items():
        if key + SCALE in packed:
            tensor.copy_(torch.from_numpy(kernels[key]))
        elif tensor.is_floating_point() and dtype != "float32":
            rounded = tensor.half().float()
            tensor.copy_(torch.where(rounded.isfinite(), rounded, tensor))
