"""Every committed weights file names a recipe that is here; figures on synthetic data are measured again."""

import math
from pathlib import Path

import pytest

from fovea_recipes.training.recipe import Recipe, recipe_named
from shared.export.artifacts import ExportedForms
from shared.registry.discovery import shipped_weights
from shared.registry.weights import Manifest, read_manifest, read_weights

SYNTHETIC = (
    "bmn", "bmn-csa", "fovea-pointer-hull", "fovea-pointer-tour", "hieraedgenet-synthetic-pollen", "oat",
    "pranet-v2",
)  # fmt: skip
"""Weights whose test data follow from a seed, so that anybody can measure them again."""

TRAINED = [name for name, file in shipped_weights().items() if read_manifest(file).origin == "trained"]


def recipe_of(manifest: Manifest) -> Recipe:
    options = dict(manifest.recipe)
    return recipe_named(options.pop("name")).model_validate(options)


@pytest.mark.parametrize("name", TRAINED)
def test_weights_are_of_a_recipe_that_takes_their_knobs(name):
    manifest = read_manifest(shipped_weights()[name])
    assert recipe_of(manifest).seed == manifest.recipe["seed"]


@pytest.mark.release
@pytest.mark.parametrize("name", SYNTHETIC)
def test_figures_on_synthetic_data_are_measured_again(name):
    weights = read_weights(shipped_weights()[name])
    network = ExportedForms(weights, Path(), (), (), "again").network()
    found = recipe_of(weights.manifest).measure(network)
    known = {name: value for name, value in weights.manifest.metrics.items() if name in found}
    assert known
    assert {name: found[name] for name in known} == pytest.approx(known, abs=2e-3, nan_ok=True)
    assert any(math.isfinite(value) for value in known.values())
