"""Cards and the weights that they name: what a Card says of a network is what its manifest says, and was measured.

Covers every model whose weights came with the packages, and every new one.
"""

import math
from pathlib import Path
from typing import Any

import pytest

from shared.export.artifacts import ExportedForms
from shared.registry import Servable, servables
from shared.registry.discovery import SERVICES, shipped_weights
from shared.registry.weights import Manifest, read_weights
from shared.training.recipe import Recipe, recipe_named

FOUND = {name: kind for service in SERVICES for name, kind in servables(service).items()}
MOST_BYTES = 12_000_000

SYNTHETIC = (
    "bmn", "bmn-csa", "fovea-pointer-hull", "fovea-pointer-tour", "hieraedgenet-synthetic-pollen", "oat",
    "pranet-v2",
)  # fmt: skip
"""Weights whose test data follow from a seed, so that anybody can measure them again."""


def names_of(kind: type[Servable[Any, Any]]) -> list[str]:
    told = getattr(kind, "weights", kind.card.name)
    return [name for name in ([told] if isinstance(told, str) else told) if name in shipped_weights()]


def manifest_of(name: str) -> Manifest:
    return Manifest.model_validate_json(shipped_weights()[name].with_suffix(".json").read_text("utf8"))


def recipe_of(manifest: Manifest) -> Recipe:
    options = dict(manifest.recipe)
    return recipe_named(options.pop("name")).model_validate(options)


WITH_CARD = [name for name, kind in FOUND.items() if kind.card.weights is not None and names_of(kind)]


@pytest.mark.parametrize("name", WITH_CARD)
def test_a_card_repeats_the_manifest_of_its_weights(name):
    card, manifests = FOUND[name].card, [manifest_of(one) for one in names_of(FOUND[name])]
    assert card.weights in {manifest.sha256 for manifest in manifests}
    assert card.parameters == sum(manifest.parameters or 0 for manifest in manifests)
    measured = {name: value for manifest in manifests for name, value in manifest.metrics.items()}
    shown = {metric.name: metric.ours for metric in card.metrics if metric.ours is not None}
    assert shown
    assert shown == {name: measured.get(name) for name in shown}


@pytest.mark.parametrize("name", WITH_CARD)
def test_a_card_says_on_which_kind_of_data_each_figure_was_measured(name):
    figures = [metric for metric in FOUND[name].card.metrics if metric.ours is not None]
    assert all("(real)" in metric.data or "synthetic" in metric.data for metric in figures)
    real = [metric.note or "" for metric in figures if "(real)" in metric.data]
    assert not real or any("95 % interval" in note for note in real), "of few pictures, how sure the figures are"


@pytest.mark.parametrize("name", sorted({one for kind in FOUND.values() for one in names_of(kind)}))
def test_weights_are_small_and_of_a_recipe_that_is_here(name):
    manifest = manifest_of(name)
    recipe = recipe_of(manifest)
    assert manifest.bytes <= MOST_BYTES
    places = [str(value) for value in recipe.model_dump(mode="json").values() if isinstance(value, str)]
    assert not [place for place in places if place.startswith(("/", "~", "."))], "it names a folder of a machine"


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
