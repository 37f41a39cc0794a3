"""Pictures of every kind become masks of their own size, in every form."""

import io

import numpy as np
import pytest
from PIL import Image

from fovea.api.mask import SegmentIn
from fovea.api.tensors import TensorSpec
from services.medical_seg.segmenter import Segmenter
from shared.registry import CallContext
from shared.registry.weights import Manifest, NetworkSpec, Weights
from shared.vision.decode import decode
from shared.vision.servable import DataConfig
from tests.bad_pictures import encoded, odd, quadrants
from tests.harness.models import toy_card


class Small(Segmenter):
    """A model without weights."""

    card = toy_card("small", "segment")


class Blob:
    """An engine that finds one bright circle at the same place of every picture, and counts its runs."""

    name = "blob"
    inputs = (TensorSpec(name="image", datatype="FP32", shape=(-1, 3, 32, 32)),)
    outputs = (TensorSpec(name="logits", datatype="FP32", shape=(-1, 1, 32, 32)),)

    def __init__(self):
        y, x = np.mgrid[:32, :32]
        self.map = np.clip(3 * (8 - np.hypot(x - 12, y - 16)), -9, 9).astype(np.float32)
        self.batches = []

    def run(self, feeds):
        self.batches.append(len(feeds["image"]))
        return {"logits": np.repeat(self.map[None, None], len(feeds["image"]), axis=0)}

    def close(self):
        """Nothing is held."""


@pytest.fixture
def blob():
    return Small(Small.card, Blob(), DataConfig(32))


def ask(image, **options):
    return SegmentIn(image=image, **options)


def one(servable, request, run=None):
    (answer,) = servable.predict([request], run or CallContext())
    return answer


def test_weights_are_served_at_the_side_that_they_were_trained_with():
    manifest = Manifest(name="a", origin="imported", network=NetworkSpec(name="pranet"))
    trained = manifest.model_copy(update={"recipe": {"scale": {"side": 64}}})
    assert [Small.data_config(Weights({}, one)).side for one in (manifest, trained)] == [352, 64]


def test_turned_picture_is_answered_in_upright_pixels(blob):
    stored = next(sample for sample in odd() if sample.name == "exif-6-jpeg")
    assert Image.open(io.BytesIO(stored.data)).size == (48, 64)
    answer = one(blob, ask(stored.data))
    assert (answer.width, answer.height) == (64, 48)
    assert answer.components[0].centre == pytest.approx((25, 24.75), abs=1)


def test_resizing_and_first_frames_are_noted(blob):
    plain = one(blob, ask(encoded(quadrants(), "PNG")))
    assert "32×32" in plain.notes[0]
    assert "align_corners=False" in plain.notes[0]
    animated = next(sample for sample in odd() if sample.name == "animated-webp")
    assert one(blob, ask(animated.data)).notes[1] == "Only the first frame was read."


def test_empty_picture_has_an_empty_mask(blob):
    blob.engine.map[:] = -9
    answer = one(blob, ask(encoded(quadrants(), "PNG"), include=("mask", "contours", "rle")))
    assert answer.empty
    assert (answer.contours, answer.components, answer.area) == ([], [], 0)
    assert not decode(answer.mask).pixels.any()


def test_overlay_is_drawn_on_the_upright_picture(blob):
    answer = one(blob, ask(encoded(quadrants(), "PNG"), include=("mask", "overlay")))
    overlay, mask = decode(answer.overlay), decode(answer.mask).pixels[..., 0] > 0
    assert overlay.format == "JPEG"
    change = np.abs(overlay.pixels - np.asarray(quadrants()).astype(int)).max(axis=2)
    assert change[mask].mean() > 30
    assert np.median(change[~mask]) < 10
