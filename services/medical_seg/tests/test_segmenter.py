"""Pictures of every kind become masks of their own size; a bad one fails alone; a batch equals its singles."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from services.medical_seg.segmenter import Segmenter
from shared.api.mask import SegmentIn
from shared.api.tensors import TensorSpec
from shared.registry import CallContext, Card, Limits, LoadContext, Metric, Paper, network
from shared.registry.weights import Manifest, NetworkSpec, read_weights, write_weights
from shared.vision.decode import decode
from shared.vision.servable import DataConfig
from tests.bad_pictures import encoded, odd, quadrants

torch.set_num_threads(1)

CONFIG = {"width": 0.125, "decoder": 8, "classifier": False}
SIDE = 64
FACTS = {"task": "segment", "summary": "s", "paper": Paper(title="t", venue="v", year=2020), "licence": "Apache-2.0"}


class Small(Segmenter):
    """A small PraNet with random weights."""

    weights = "small"
    card = Card(
        name="small",
        example={"threshold": 0.4},
        notes=("A note.",),
        limits=Limits(max_side=4000),
        metrics=(Metric(name="dice_at_half", ours=None, data="d"), Metric(name="other", ours=None, data="d")),
        **FACTS,
    )


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
        """The same map for each picture."""
        self.batches.append(len(feeds["image"]))
        return {"logits": np.repeat(self.map[None, None], len(feeds["image"]), axis=0)}

    def close(self):
        """Nothing is held."""


@pytest.fixture(scope="module")
def packaged(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(4)
    net = network("pranet", **CONFIG)
    for module in net.modules():  # lively statistics, so that the map is not flat
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.8, 1.2)
    arrays = {key: value.numpy() for key, value in net.state_dict().items()}
    manifest = Manifest(
        name="small",
        origin="trained",
        network=NetworkSpec(name="pranet", config=CONFIG),
        parameters=7,
        recipe={"scale": {"side": SIDE}},
        metrics={"dice_at_half": 0.5},
    )
    write_weights(folder, arrays, manifest)
    return folder


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def small(packaged, cache):
    Small.folder = packaged
    found = Small.load(LoadContext(engine="onnx", cache=cache, weights=cache / "none", threads=1))
    yield found
    found.close()


@pytest.fixture
def blob():
    return Small(Small.card, Blob(), DataConfig(32))


def ask(image, **options):
    return SegmentIn(image=image, **options)


def one(servable, request, run=None):
    (answer,) = servable.predict([request], run or CallContext())
    return answer


# Loading.


def test_weights_are_verified_and_their_facts_go_into_the_card(small):
    assert len(small.card.weights) == 64
    assert small.card.parameters == 7
    assert [metric.ours for metric in small.card.metrics] == [0.5, None]
    assert small.config.side == SIDE
    assert Small.card.weights is None  # the class's own Card is left as it was


def test_imported_weights_win_and_are_served_at_full_size(packaged, tmp_path):
    held = read_weights(packaged / "small.safetensors")
    facts = {"origin": "imported", "recipe": {}, "metrics": {}}
    write_weights(tmp_path / "imported", held.arrays, held.manifest.model_copy(update=facts))
    found = Small.load(LoadContext(engine="torch", cache=tmp_path, weights=tmp_path / "imported"))
    assert found.config.side == 352
    assert [metric.ours for metric in found.card.metrics] == [None, None]


# Pictures.


@pytest.mark.parametrize("sample", odd(), ids=lambda sample: sample.name)
def test_every_readable_picture_is_answered_in_its_upright_size(blob, sample):
    answer = one(blob, ask(sample.data))
    assert (answer.width, answer.height) == sample.size
    assert decode(answer.mask).pixels.shape[:2] == sample.size[::-1]


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


# Forms.


def test_overlay_is_drawn_on_the_upright_picture(blob):
    request = ask(encoded(quadrants(), "PNG"), include=("mask", "overlay"))
    answer = one(blob, request)
    overlay, mask = decode(answer.overlay), decode(answer.mask).pixels[..., 0] > 0
    assert overlay.format == "JPEG"
    before = np.asarray(quadrants()).astype(int)
    change = np.abs(overlay.pixels - before).max(axis=2)
    assert change[mask].mean() > 30
    assert np.median(change[~mask]) < 10


@pytest.mark.parametrize("include", [("mask",), (), ("rle",), ("overlay",)])
@pytest.mark.parametrize(("media", "kind"), [("image/png", "PNG"), ("image/jpeg", "JPEG")])
def test_answer_is_rendered_whatever_it_includes(blob, media, kind, include):
    request = ask(encoded(quadrants(), "PNG"), include=include)
    picture = decode(blob.render(request, one(blob, request), media))
    assert picture.format == kind
    full = decode(blob.render(ask(request.image), one(blob, ask(request.image)), "image/png"))
    assert np.abs(picture.pixels.astype(int) - full.pixels).mean() < 6
