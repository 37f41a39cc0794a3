"""The committed road detector: described truly, aware of what is no road, and its attention reaches the boxes."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from services.detection.layers import PositionAttention
from services.detection.models.yolo9tr import Yolo9trBoxDetector
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


def test_the_card_says_that_it_is_weak() -> None:
    assert "Weak" in Yolo9trBoxDetector.card.notes[0]


@pytest.mark.parametrize(
    "name",
    ["detection/models/smear", "detection/models/clothes", "detection/models/pollen", "medical_seg/models/frame"],
)
def test_a_smear_clothes_pollen_and_a_colonoscopy_frame_are_answered_with_a_warning(
    detector: Yolo9trBoxDetector, name: str
) -> None:
    picture = (Path(__file__).parents[2] / f"{name}.jpg").read_bytes()
    (answer,) = detector.predict([DetectIn(image=picture)], CallContext())
    assert "unlike those" in answer.warnings[0]


def test_damage_of_the_sample_is_found_without_a_warning(detector: Yolo9trBoxDetector) -> None:
    (answer,) = detector.predict([detector.example()], CallContext())
    assert answer.warnings == []
    assert answer.detections
    assert {each.label for each in answer.detections} <= {"crack", "pothole"}


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
