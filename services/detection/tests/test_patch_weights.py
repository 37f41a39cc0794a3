"""The committed classifier of drawn patches: small, whole, described truly, and as good as its manifest says."""

from __future__ import annotations

import numpy as np
import pytest

from services.detection.models.fasternet import FasterNetClassifier
from services.detection.recipes.patnet.data import NAMES, draw_split
from services.detection.recipes.patnet.recipe import FasterNetDemo, paired_difference
from shared.api.classes import ClassifyIn
from shared.registry import CallContext, LoadContext
from shared.registry.weights import read_weights
from shared.vision.draw import encode

KINDS = [(FasterNetClassifier, FasterNetDemo)]


def manifest_of(kind):
    return read_weights(kind.folder / f"{kind.weights}.safetensors").manifest


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    home = tmp_path_factory.mktemp("place")
    place = LoadContext(engine="torch", cache=home / "cache", weights=home / "none", threads=1)
    loaded = {kind: kind.load(place) for kind, _ in KINDS}
    yield loaded
    for servable in loaded.values():
        servable.close()


@pytest.mark.parametrize(("kind", "recipe"), KINDS)
def test_the_manifest_is_that_of_the_recipe_as_it_stands(kind, recipe):
    manifest = manifest_of(kind)
    told = dict(manifest.recipe)
    assert told.pop("name") == recipe.name
    assert recipe.model_validate(told) == recipe()
    assert manifest.network.config == recipe().config()
    assert manifest.bytes <= 8 * 2**20
    assert manifest.data["digest"].startswith("train:")


@pytest.mark.parametrize(("kind", "recipe"), KINDS)
def test_the_card_tells_what_the_manifest_tells(kind, recipe):
    manifest, card = manifest_of(kind), kind.card
    assert (card.weights, card.parameters) == (manifest.sha256, manifest.parameters)
    told = {metric.name: metric.ours for metric in card.metrics if metric.ours is not None}
    assert told
    assert told == {name: manifest.metrics[name] for name in told}


@pytest.mark.parametrize(("kind", "recipe"), KINDS)
def test_new_patches_are_told_apart_alone_and_in_one_picture(served, kind, recipe):
    held = draw_split("test", 24, seed=77)
    right = [
        answer.results[0].class_id == label
        for answer, label in zip(
            served[kind].predict([ClassifyIn(image=encode(image)) for image in held.images], CallContext()),
            held.labels,
            strict=True,
        )
    ]
    assert np.mean(right) >= 0.9
    page = np.concatenate([np.concatenate(held.images[row * 6 : row * 6 + 6], axis=1) for row in range(4)])
    (answer,) = served[kind].predict([ClassifyIn(image=encode(page), tile=96)], CallContext())
    assert (answer.rows, answer.columns) == (4, 6)
    assert np.mean([result.label == NAMES[i % 6] for i, result in enumerate(answer.results)]) >= 0.9


def test_the_example_shows_each_class_once(served):
    servable = served[FasterNetClassifier]
    (answer,) = servable.predict([servable.example()], CallContext())
    assert [result.label for result in answer.results] == list(NAMES)


def test_the_difference_of_equal_scores_is_zero_and_its_interval_holds_the_mean():
    first, second = np.array([True, True, False, True]), np.array([True, False, False, True])
    low, mean, high = paired_difference(first, second)
    assert mean == pytest.approx(0.25)
    assert low < mean < high
    assert high - mean == pytest.approx(1.96 * 0.25)
    assert paired_difference(first, first) == (0, 0, 0)


def test_patches_depend_on_their_number_alone_and_are_balanced():
    held = draw_split("train", 12, seed=5)
    assert np.array_equal(held.images[:6], draw_split("train", 6, seed=5).images)
    assert held.labels.tolist() == [0, 1, 2, 3, 4, 5] * 2
    assert not np.array_equal(draw_split("valid", 6, seed=5).images, held.images[:6])
    assert held.images.shape == (12, 96, 96, 3)
