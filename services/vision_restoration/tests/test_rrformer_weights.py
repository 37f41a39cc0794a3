"""The committed restorer: small, whole, described truly, and as careful as Card and manifest say."""

from __future__ import annotations

from pathlib import Path

import pytest

from services.vision_restoration.models.rrformer import RRFormerRestorer
from services.vision_restoration.recipes.rrformer_photographs import RRFormerPhotographs
from shared.registry.weights import read_weights


@pytest.fixture(scope="module")
def manifest():
    return read_weights(RRFormerRestorer.folder / "rrformer-restorer.safetensors").manifest


def test_the_manifest_is_one_of_the_recipe_and_names_no_place_of_a_machine(manifest):
    told = dict(manifest.recipe)
    assert told.pop("name") == "rrformer"
    recipe = RRFormerPhotographs.model_validate(told)
    assert recipe.data == Path("photographs")
    assert manifest.network.config == recipe.config()
    assert (manifest.dtype, manifest.bytes < 3 * 2**20) == ("float16", True)


def test_the_card_tells_what_the_manifest_tells_and_that_reflections_are_made(manifest):
    card = RRFormerRestorer.card
    assert (card.weights, card.parameters) == (manifest.sha256, manifest.parameters)
    ours = {metric.name: metric for metric in card.metrics if metric.ours is not None}
    assert {"psnr", "ssim", "psnr_identity", "psnr_gain", "psnr_clean", "harmed"} <= ours.keys()
    assert all(metric.ours == manifest.metrics[name] for name, metric in ours.items())
    assert all("synthetic reflections" in metric.data for metric in ours.values())
    assert "95 % interval" in (ours["psnr_gain"].note or "")
    assert any(metric.paper is not None for metric in card.metrics)


def test_pictures_gain_and_clean_ones_stay(manifest):
    assert manifest.metrics["psnr_gain"] >= 0.3
    assert manifest.metrics["psnr_clean"] >= 35
    assert manifest.metrics["harmed"] <= 0.1
