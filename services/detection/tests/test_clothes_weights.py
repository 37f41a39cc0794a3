"""The committed classifiers of clothes: described truly, and right on their sample."""

from __future__ import annotations

from pathlib import Path

import pytest

from services.detection.models.fasternet import FasterNetClassifier
from services.detection.models.patnet import PATNetClassifier
from services.detection.recipes.partial_networks import FasterNetRecipe, PATNetRecipe
from shared.registry import CallContext, LoadContext
from shared.registry.weights import read_weights

NAMES = ["dress", "hat", "longsleeve", "outwear", "pants", "shirt", "shoes", "shorts", "skirt", "t-shirt"]


KINDS = [(PATNetClassifier, PATNetRecipe), (FasterNetClassifier, FasterNetRecipe)]


def manifest_of(kind):
    return read_weights(kind.folder / f"{kind.weights}.safetensors").manifest


@pytest.mark.parametrize(("kind", "recipe"), KINDS)
def test_the_manifest_is_one_of_the_recipe_and_names_no_place_of_a_machine(kind, recipe):
    manifest = manifest_of(kind)
    told = dict(manifest.recipe)
    assert told.pop("name") == recipe.name
    knobs = recipe.model_validate(told)
    assert (knobs.data, knobs.teacher.data) == (Path("clothing"), Path("clothing"))
    assert (manifest.data["origin"], manifest.data["names"].split(",")) == ("real", NAMES)
    assert manifest.bytes <= 4 * 2**20


@pytest.mark.parametrize(("kind", "recipe"), KINDS)
def test_the_card_tells_what_the_manifest_tells_and_names_the_teacher(kind, recipe):
    manifest, card = manifest_of(kind), kind.card
    assert (card.weights, card.parameters) == (manifest.sha256, manifest.parameters)
    first = card.metrics[0]
    assert (first.name, first.ours) == ("top_1", manifest.metrics["top_1"])
    assert first.data == "Clothing dataset (small) (real), 250 held-out pictures"
    assert "95 % interval" in (first.note or "")
    assert manifest.metrics["teacher_top_1"] > first.ours >= 0.45


@pytest.mark.parametrize(("kind", "recipe"), KINDS)
def test_the_card_says_where_its_warnings_fail(kind, recipe):
    told = {name: value for name, value in manifest_of(kind).metrics.items() if name.startswith("auroc_")}
    assert {"auroc_polyps", "auroc_cells", "auroc_pavement", "auroc_unlearnt_cells"} <= told.keys()
    assert min(told["auroc_cells"], told["auroc_pavement"]) >= 0.95
    weak = [name for name, value in told.items() if value < 0.95]
    assert all(name in kind.card.notes[0] for name in weak)


@pytest.mark.parametrize(("kind", "recipe"), KINDS)
def test_the_sample_is_told_without_a_warning(kind, recipe, tmp_path):
    place = LoadContext(engine="torch", cache=tmp_path / "cache", weights=tmp_path / "none", threads=1)
    served = kind.load(place)
    try:
        (answer,) = served.predict([served.example()], CallContext())
    finally:
        served.close()
    assert answer.results[0].label == "shoes"
    assert answer.warnings == []
