"""Committed weights: PraNet's know a frame from other pictures, and V2's are as good as their manifest says."""

import io

import numpy as np
import pytest
from PIL import Image

from fovea.api.mask import SegmentIn
from fovea_recipes.medical_seg.evaluation import mean_dice_at_half
from fovea_recipes.medical_seg.polyps import draw_frame
from fovea_recipes.training.data.synthetic import draw_split
from services.medical_seg.models.pranet import PraNetSegmenter, PraNetV2Segmenter
from shared.registry import CallContext, LoadContext
from shared.registry.weights import read_weights
from shared.vision.draw import encode


@pytest.fixture(scope="module", params=[PraNetV2Segmenter])
def served(request, tmp_path_factory):
    place = tmp_path_factory.mktemp("place")
    loaded = request.param.load(LoadContext(engine="torch", cache=place, weights=place / "none", threads=1))
    yield loaded
    loaded.close()


real = pytest.mark.parametrize("served", [PraNetSegmenter], indirect=True)


@pytest.mark.parametrize("shade", [0, 12, 128, 255])
def test_a_frame_without_contrast_is_answered_with_a_warning(served, shade):
    noise = np.random.default_rng(shade).integers(0, 3, (240, 320, 3))
    flat, example = SegmentIn(image=encode(np.clip(noise + shade, 0, 255).astype(np.uint8))), served.example()
    dark, real = served.predict([flat, example], CallContext())
    assert "no contrast" in dark.warnings[0]
    assert real.warnings == []


def test_served_masks_of_fresh_frames_are_as_good_as_told_and_the_example_is_found(served):
    drawn = draw_split(draw_frame, "test", 30, 77, 160)
    answers = served.predict(
        [SegmentIn(image=encode(image), include=("mask",)) for image in drawn.images], CallContext()
    )
    masks = np.stack([np.asarray(Image.open(io.BytesIO(answer.mask))) > 0 for answer in answers])
    measured = read_weights(PraNetV2Segmenter.folder / "pranet-v2.safetensors").manifest.metrics["dice_at_half"]
    assert mean_dice_at_half(masks.astype(np.float32), drawn.truth) == pytest.approx(measured, abs=0.02)
    assert [answer.empty for answer in answers][9::10] == [True, True, True]
    request = served.example()
    assert len(request.image) <= 15_000
    (answer,) = served.predict([request], CallContext())
    found = np.asarray(Image.open(io.BytesIO(answer.mask))) > 0
    truth = draw_split(draw_frame, "test", 1, 1, 160).truth[0]
    assert 2 * (found & truth).sum() / (found.sum() + truth.sum()) > 0.9


@real
def test_the_polyp_of_the_sample_is_marked_and_only_what_is_no_frame_warned_of(served):
    (answer,) = served.predict([served.example()], CallContext())
    assert (answer.warnings, answer.component_count) == ([], 1)
    (x, y), area = answer.components[0].centre, answer.components[0].area
    assert abs(x - 112) < 15
    assert abs(y - 178) < 15
    assert 2_000 < area < 12_000
    assert served.card.variant == "efficientnet-lite0"
    rng, rows = np.random.default_rng(0), np.mgrid[:240, :320][0]
    wall = np.repeat((140 + rows[..., None] / 8).astype(np.uint8), 3, axis=-1)
    others = [wall, rng.integers(0, 256, (240, 320, 3), np.uint8)]
    answers = served.predict([SegmentIn(image=encode(other)) for other in others], CallContext())
    assert all(answer.warnings for answer in answers)
