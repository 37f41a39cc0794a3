"""The committed weights: small, whole, described truly, and as good (and as weak) as Card and manifest say."""

from __future__ import annotations

import pytest

from services.vision_restoration.models.rrformer import RRFormerRestorer
from services.vision_restoration.recipes.rrformer_demo import RRFormerDemo
from shared.registry.weights import read_weights


@pytest.fixture(scope="module")
def manifest():
    return read_weights(RRFormerRestorer.folder / "rrformer-restorer.safetensors").manifest


def test_the_manifest_is_that_of_the_recipe_as_it_stands(manifest):
    told = dict(manifest.recipe)
    assert told.pop("name") == "rrformer-demo"
    assert RRFormerDemo.model_validate(told) == RRFormerDemo()
    assert manifest.network.config == RRFormerDemo().config()
    assert (manifest.dtype, manifest.bytes < 2 * 2**20) == ("float16", True)


def test_the_card_tells_what_the_manifest_tells(manifest):
    card = RRFormerRestorer.card
    assert (card.weights, card.parameters) == (manifest.sha256, manifest.parameters)
    ours = {metric.name: metric.ours for metric in card.metrics if metric.ours is not None}
    assert ours == {name: manifest.metrics[name] for name in ours}
    assert {"psnr", "ssim", "psnr_identity", "psnr_clean"} <= ours.keys()
    assert any(metric.paper is not None for metric in card.metrics)


def test_the_numbers_reach_the_targets_that_the_card_does_not_call_weak(manifest):
    assert manifest.metrics["psnr_gain"] >= 2.0
    assert manifest.metrics["ssim"] >= manifest.metrics["ssim_identity"]
    assert manifest.metrics["pairs"] == 200


def test_what_is_weak_or_unusual_is_said_on_the_card(manifest):
    told = " ".join(RRFormerRestorer.card.notes)
    assert "psnr_clean" in told
    assert manifest.notes["stopped"] in told
    for value in (manifest.notes["ablation"][f"validation_score_{name}"] for name in ("paper", "released")):
        assert f"{value:.2f}" in told
