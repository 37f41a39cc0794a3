"""The committed synthetic weights: small, whole, described truly, and as good as their manifest says."""

from __future__ import annotations

import io
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from services.medical_seg.models.pranet import PraNetV2Segmenter
from services.medical_seg.recipes.evaluation import mean_dice_at_half
from services.medical_seg.recipes.polyps import draw_split
from services.medical_seg.recipes.pranet_demo import PraNetV2Demo
from shared.api.mask import SegmentIn
from shared.registry import CallContext, LoadContext
from shared.registry.weights import read_weights

KINDS = [(PraNetV2Segmenter, PraNetV2Demo)]


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """Each Servable with the weights that come with the package."""
    place = tmp_path_factory.mktemp("place")
    loaded = {
        kind: kind.load(LoadContext(engine="torch", cache=place / "cache", weights=place / "none", threads=1))
        for kind, _ in KINDS
    }
    yield loaded
    for servable in loaded.values():
        servable.close()


def file_of(kind) -> Path:
    return kind.folder / f"{kind.weights}.safetensors"


def png(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize(("kind", "recipe"), KINDS)
def test_the_manifest_is_that_of_the_recipe_as_it_stands(kind, recipe):
    manifest = read_weights(file_of(kind)).manifest
    told = dict(manifest.recipe)
    assert told.pop("name") == recipe.name
    assert recipe.model_validate(told) == recipe()
    assert manifest.network.config == recipe().config()
    assert manifest.dtype == "int8"
    assert manifest.bytes <= 8 * 2**20


@pytest.mark.parametrize("kind", [kind for kind, _ in KINDS])
@pytest.mark.parametrize("shade", [0, 12, 128, 255])
def test_a_frame_without_contrast_is_answered_with_a_warning(served, kind, shade):
    noise = np.random.default_rng(shade).integers(0, 3, (240, 320, 3))
    flat, example = SegmentIn(image=png(np.clip(noise + shade, 0, 255).astype(np.uint8))), served[kind].example()
    dark, real = served[kind].predict([flat, example], CallContext())
    assert "no contrast" in dark.warnings[0]
    assert real.warnings == []


@pytest.mark.parametrize(("kind", "recipe"), KINDS)
def test_the_manifest_names_its_data_and_the_libraries_that_drew_it(kind, recipe):
    manifest = read_weights(file_of(kind)).manifest
    assert set(manifest.code) >= {"torch", "numpy", "pillow", "scipy"}
    assert manifest.data["digest"].startswith("train:")
    assert len(manifest.data["test_digest"]) == 64


@pytest.mark.parametrize(("kind", "recipe"), KINDS)
def test_the_card_tells_what_the_manifest_tells(kind, recipe):
    manifest, card = read_weights(file_of(kind)).manifest, kind.card
    assert (card.weights, card.parameters) == (manifest.sha256, manifest.parameters)
    ours = {metric.name: metric.ours for metric in card.metrics if metric.ours is not None}
    assert ours == {name: manifest.metrics[name] for name in ours}
    assert {"dice_at_half", "mean_dice", "empty_with_any_pixel"} <= ours.keys()


@pytest.mark.parametrize(("kind", "recipe"), KINDS)
def test_the_measured_numbers_reach_the_targets_of_the_spec(kind, recipe):
    metrics = read_weights(file_of(kind)).manifest.metrics
    assert (metrics["frames"], metrics["empty_frames"]) == (400, 40)
    assert metrics["dice_at_half"] >= 0.85
    assert metrics["mean_dice"] >= 0.80
    assert metrics["empty_with_any_pixel"] <= 0.10


@pytest.mark.parametrize(("kind", "recipe"), KINDS)
def test_served_masks_of_fresh_frames_are_as_good_as_the_manifest_says(served, kind, recipe):
    drawn = draw_split("test", 30, seed=77)
    answers = served[kind].predict(
        [SegmentIn(image=png(image), include=("mask",)) for image in drawn.images], CallContext()
    )
    masks = np.stack([np.asarray(Image.open(io.BytesIO(answer.mask))) > 0 for answer in answers])
    assert mean_dice_at_half(masks.astype(np.float32), drawn.masks) > 0.88
    assert [answer.empty for answer in answers][9::10] == [True, True, True]


@pytest.mark.parametrize(("kind", "recipe"), KINDS)
def test_minmax_finds_something_even_where_nothing_is(served, kind, recipe):
    empty = draw_split("test", 10, seed=77).images[9]
    plain, stretched = (
        served[kind].predict([SegmentIn(image=png(empty), normalise=how)], CallContext())[0]
        for how in ("none", "minmax")
    )
    assert (plain.empty, stretched.empty) == (True, False)


@pytest.mark.parametrize(("kind", "recipe"), KINDS)
def test_the_polyp_of_the_example_is_found(served, kind, recipe):
    request = served[kind].example()
    assert len(request.image) <= 15_000
    (answer,) = served[kind].predict([request], CallContext())
    found = np.asarray(Image.open(io.BytesIO(answer.mask))) > 0
    truth = draw_split("test", 1, seed=1).masks[0]
    assert 2 * (found & truth).sum() / (found.sum() + truth.sum()) > 0.9


def test_the_example_is_a_frame_of_the_recipe():
    raw = resources.files("services.medical_seg.models").joinpath("example.jpg").read_bytes()
    shown = np.asarray(Image.open(io.BytesIO(raw))).astype(int)
    assert np.abs(shown - draw_split("test", 1, seed=1).images[0]).mean() < 4


@pytest.mark.parametrize(("kind", "recipe"), KINDS)
def test_the_card_says_what_a_user_must_know(kind, recipe):
    told = " ".join(kind.card.notes)
    assert "Not a medical device" in told
    assert "synthetic" in told
    assert "minmax" in told
    assert "Official weights" in kind.card.licence
    assert any(metric.paper is not None for metric in kind.card.metrics)


def test_v2_tells_that_one_class_only_doubles_its_maps():
    assert "doubles" in " ".join(PraNetV2Segmenter.card.notes)
