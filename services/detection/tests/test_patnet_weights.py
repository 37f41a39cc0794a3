"""The committed classifier of clothes: described truly, and right on its sample."""

from __future__ import annotations

from pathlib import Path

import pytest

from services.detection.models.patnet import PATNetClassifier
from services.detection.recipes.partial_networks import PATNetRecipe
from shared.registry import CallContext, LoadContext
from shared.registry.weights import read_weights

NAMES = ["dress", "hat", "longsleeve", "outwear", "pants", "shirt", "shoes", "shorts", "skirt", "t-shirt"]


@pytest.fixture(scope="module")
def manifest():
    return read_weights(PATNetClassifier.folder / "patnet.safetensors").manifest


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    home = tmp_path_factory.mktemp("place")
    loaded = PATNetClassifier.load(LoadContext(engine="torch", cache=home / "cache", weights=home / "none", threads=1))
    yield loaded
    loaded.close()


def test_the_manifest_is_one_of_the_recipe_and_names_no_place_of_a_machine(manifest):
    told = dict(manifest.recipe)
    assert told.pop("name") == PATNetRecipe.name
    recipe = PATNetRecipe.model_validate(told)
    assert (recipe.data, recipe.teacher.data) == (Path("clothing"), Path("clothing"))
    assert (manifest.data["origin"], manifest.data["names"].split(",")) == ("real", NAMES)
    assert manifest.bytes <= 4 * 2**20


def test_the_card_tells_what_the_manifest_tells_and_names_the_teacher(manifest):
    card = PATNetClassifier.card
    assert (card.weights, card.parameters) == (manifest.sha256, manifest.parameters)
    first = card.metrics[0]
    assert (first.name, first.ours) == ("top_1", manifest.metrics["top_1"])
    assert first.data == "Clothing dataset (small) (real), 250 held-out pictures"
    assert "95 % interval" in (first.note or "")
    assert manifest.metrics["teacher_top_1"] > first.ours >= 0.45


def test_the_card_says_where_its_warnings_fail(manifest):
    told = {name: value for name, value in manifest.metrics.items() if name.startswith("auroc_")}
    assert {"auroc_polyps", "auroc_cells", "auroc_pavement", "auroc_unlearnt_cells"} <= told.keys()
    assert min(told["auroc_cells"], told["auroc_pavement"]) >= 0.95
    weak = [name for name, value in told.items() if value < 0.95]
    assert all(name in PATNetClassifier.card.notes[0] for name in weak)


def test_the_sample_is_told_without_a_warning(served):
    (answer,) = served.predict([served.example()], CallContext())
    assert answer.results[0].label == "shoes"
    assert answer.warnings == []
