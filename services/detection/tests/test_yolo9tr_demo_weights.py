"""The demo weights of YOLO9tr as they are served: found damage, reached targets, and a Card that says what they are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from services.detection.layers import PositionAttention
from services.detection.metrics import box_average_precision
from services.detection.models.yolo9tr import Yolo9trBoxDetector
from services.detection.recipes.box_evaluation import predict_boxes
from services.detection.recipes.yolo9tr.data import draw_split
from shared.api.boxes import DetectOut
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
    return Yolo9trBoxDetector.load(LoadContext(cache=folder, weights=folder))


def test_the_card_repeats_the_manifest(weights: Weights) -> None:
    card, manifest = Yolo9trBoxDetector.card, weights.manifest
    assert (card.weights, card.parameters) == (manifest.sha256, manifest.parameters)
    assert {m.name: m.ours for m in card.metrics} == {k: v for k, v in manifest.metrics.items() if k != "scenes"}
    assert manifest.network.config["branch"] == "main"
    assert manifest.bytes <= 5_000_000


def test_the_targets_of_the_description_are_reached(weights: Weights) -> None:
    assert weights.manifest.metrics["map50"] >= 0.60
    assert weights.manifest.metrics["map50_95"] >= 0.30


def test_the_example_holds_what_is_found_in_it(detector: Yolo9trBoxDetector) -> None:
    (answer,) = detector.predict([detector.example()], CallContext())
    assert isinstance(answer, DetectOut)
    assert {"D00", "D10", "D20", "patch"} <= {each.label for each in answer.detections}


@pytest.mark.slow
def test_fresh_scenes_are_found_as_well_as_the_manifest_says(weights: Weights, tmp_path: Path) -> None:
    net = network("yolo9tr", **weights.manifest.network.config).eval()
    net.load_state_dict({key: torch.from_numpy(array) for key, array in weights.arrays.items()})
    scenes = draw_split("test", 40, seed=77)
    truth = [scenes.of(index) for index in range(40)]
    score = box_average_precision(truth, predict_boxes(net, scenes.images, net.predictions), (0.5,)).mean()
    assert score == pytest.approx(weights.manifest.metrics["map50"], abs=0.12)


@torch.no_grad()
def test_attention_reaches_the_served_boxes(weights: Weights) -> None:
    net = network("yolo9tr", **weights.manifest.network.config).eval()
    net.load_state_dict({key: torch.from_numpy(array) for key, array in weights.arrays.items()})
    x = torch.from_numpy(draw_split("test", 1, seed=5).images.transpose(0, 3, 1, 2).astype(np.float32) / 255)
    before = net.predictions(x)
    for block in net.modules():
        if isinstance(block, PositionAttention):
            for parameter in block.attn.parameters():
                parameter.zero_()
    assert (before - net.predictions(x))[:, :4].abs().max() > 1
