"""The committed road detector: described truly, aware of what is no road, and its attention reaches the boxes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from services.detection.layers import PositionAttention
from services.detection.models.yolo9tr import Yolo9trBoxDetector
from services.detection.recipes.yolo9tr_roads import Yolo9trRoads
from shared.api.boxes import DetectIn
from shared.registry import CallContext, LoadContext, network
from shared.registry.weights import Weights, read_weights


@pytest.fixture(scope="module")
def weights() -> Weights:
    """The committed weights."""
    return read_weights(Yolo9trBoxDetector.folder / "yolo9tr.safetensors")


@pytest.fixture(scope="module")
def detector(tmp_path_factory: pytest.TempPathFactory) -> Yolo9trBoxDetector:
    """The detector as a service loads it."""
    folder = tmp_path_factory.mktemp("detector")
    return Yolo9trBoxDetector.load(LoadContext(cache=folder, weights=folder, threads=1, engine="torch"))


def test_the_manifest_is_one_of_the_recipe_and_names_no_place_of_a_machine(weights: Weights) -> None:
    manifest = weights.manifest
    told = dict(manifest.recipe)
    assert told.pop("name") == Yolo9trRoads.name
    recipe = Yolo9trRoads.model_validate(told)
    assert (recipe.data, recipe.start) == (Path("pavement"), "yolo9tr")
    assert (manifest.data["origin"], manifest.data["names"]) == ("real", "crack,pothole")
    assert manifest.network.config["branch"] == "main"
    assert manifest.bytes <= 5_000_000


def test_the_card_repeats_the_manifest_and_says_that_it_is_weak(weights: Weights) -> None:
    card, manifest = Yolo9trBoxDetector.card, weights.manifest
    assert (card.weights, card.parameters) == (manifest.sha256, manifest.parameters)
    assert card.metrics[0].ours == manifest.metrics["map50"]
    assert card.metrics[0].data == "Cracks and Potholes in Road Images (real), 61 held-out pictures"
    assert "95 % interval" in (card.metrics[0].note or "")
    assert manifest.metrics["map50"] >= 0.1
    assert "Weak" in card.notes[0]


def test_roads_are_told_from_smears_frames_and_clothes(weights: Weights) -> None:
    told = {name: value for name, value in weights.manifest.metrics.items() if name.startswith("auroc_")}
    kinds = {"auroc_polyps", "auroc_cells", "auroc_clothing"}
    assert told.keys() == kinds | {"auroc_unlearnt_cells", "auroc_unlearnt_clothing"}
    assert min(told.values()) >= 0.95


def test_damage_of_the_sample_is_found_without_a_warning(detector: Yolo9trBoxDetector) -> None:
    (answer,) = detector.predict([detector.example()], CallContext())
    assert answer.warnings == []
    assert answer.detections
    assert {each.label for each in answer.detections} <= {"crack", "pothole"}


def test_a_frame_of_colonoscopy_is_answered_with_a_warning(detector: Yolo9trBoxDetector) -> None:
    frame = Path(__file__).parents[2] / "medical_seg/models/frame.jpg"
    (answer,) = detector.predict([DetectIn(image=frame.read_bytes())], CallContext())
    assert "unlike those" in answer.warnings[0]


@torch.no_grad()
def test_attention_reaches_the_served_boxes(weights: Weights) -> None:
    net = network("yolo9tr", **weights.manifest.network.config).eval()
    net.load_state_dict({key: torch.from_numpy(array) for key, array in weights.arrays.items()})
    pixels = np.asarray(Image.open(Yolo9trBoxDetector.sample).convert("RGB").resize((320, 224)), np.float32)
    x = torch.from_numpy(pixels.transpose(2, 0, 1)[None] / 255)
    before = net.predictions(x)
    for block in net.modules():
        if isinstance(block, PositionAttention):
            for parameter in block.attn.parameters():
                parameter.zero_()
    assert (before - net.predictions(x))[:, :4].abs().max() > 1
