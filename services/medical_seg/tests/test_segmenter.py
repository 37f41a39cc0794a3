"""The segmenter and its route."""

import base64
import io
import shutil

import numpy as np
import pytest
from PIL import Image

from fovea.api.mask import SegmentIn
from fovea.api.tensors import TensorSpec
from services.medical_seg.models.pranet import PraNetSegmenter
from services.medical_seg.segmenter import Segmenter
from shared.registry import CallContext
from shared.registry.discovery import servables
from shared.registry.weights import Manifest, NetworkSpec, Weights
from shared.vision.decode import decode
from shared.vision.servable import DataConfig
from tests.bad_pictures import encoded, odd, quadrants
from tests.harness.models import client_of, problem, toy_card


class Small(Segmenter):
    card = toy_card("small", "segment")


class Blob:
    """An engine that finds one bright circle at the same place of every picture."""

    name = "blob"
    inputs = (TensorSpec(name="image", datatype="FP32", shape=(-1, 3, 32, 32)),)
    outputs = (TensorSpec(name="logits", datatype="FP32", shape=(-1, 1, 32, 32)),)

    def run(self, feeds):
        y, x = np.mgrid[:32, :32]
        logits = np.clip(3 * (8 - np.hypot(x - 12, y - 16)), -9, 9).astype(np.float32)
        return {"logits": np.repeat(logits[None, None], len(feeds["image"]), axis=0)}

    def close(self):
        """Nothing is held."""


@pytest.fixture
def blob():
    return Small(Small.card, Blob(), DataConfig(32))


def ask(servable, image, **options):
    (answer,) = servable.predict([SegmentIn(image=image, **options)], CallContext())
    return answer


def test_weights_are_served_at_the_side_that_they_were_trained_with():
    manifest = Manifest(name="a", origin="imported", network=NetworkSpec(name="pranet"))
    trained = manifest.model_copy(update={"recipe": {"scale": {"side": 64}}})
    assert [Small.data_config(Weights({}, one)).side for one in (manifest, trained)] == [352, 64]


def test_turned_resized_and_first_frames_are_upright_and_noted(blob):
    stored, animated = (next(one for one in odd() if one.name == name) for name in ("exif-6-jpeg", "animated-webp"))
    assert Image.open(io.BytesIO(stored.data)).size == (48, 64)
    answer = ask(blob, stored.data)
    assert (answer.width, answer.height) == (64, 48)
    assert answer.components[0].centre == pytest.approx((25, 24.75), abs=1)
    plain = ask(blob, encoded(quadrants(), "PNG"))
    assert "32×32" in plain.notes[0]
    assert "align_corners=False" in plain.notes[0]
    assert ask(blob, animated.data).notes[1] == "Only the first frame was read."


def test_overlay_is_drawn_on_the_upright_picture(blob):
    answer = ask(blob, encoded(quadrants(), "PNG"), include=("mask", "overlay"))
    overlay, mask = decode(answer.overlay), decode(answer.mask).pixels[..., 0] > 0
    assert overlay.format == "JPEG"
    change = np.abs(overlay.pixels - np.asarray(quadrants()).astype(int)).max(axis=2)
    assert change[mask].mean() > 30
    assert np.median(change[~mask]) < 10


EXAMPLE = PraNetSegmenter.sample.read_bytes()
"""One picture of each status; the contract suite sends all of them to the Servable."""


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    limits = {"max_images": 4, "max_pixels": 2_000_000, "max_body_bytes": 3_000_000}
    with client_of(tmp_path_factory.mktemp("fovea"), "medical-seg", {"pranet": PraNetSegmenter}, **limits) as made:
        yield made


def text(data):
    return base64.b64encode(data).decode()


def test_limits_are_named_with_limit_and_value(client):
    big = encoded(Image.new("L", (2001, 1000)), "PNG")
    told = problem(client.post("/v1/segment", json={"image": text(big)}), 413, "image")
    assert "2,001,000 in all; the limit is 2,000,000" in told["detail"]
    long = client.post("/v1/segment", content=bytes(3_000_001), headers={"content-type": "image/png"})
    assert long.status_code == 413
    limits = client.get("/v1/models/pranet").json()["limits"]
    assert (limits["max_pixels"], limits["max_body_bytes"], limits["max_images"]) == (2_000_000, 3_000_000, 4)


@pytest.fixture
def folder_without_pranet(tmp_path, monkeypatch):
    """The weights of an installation without the package of research weights."""
    shutil.copytree(Segmenter.folder, tmp_path / "weights", ignore=shutil.ignore_patterns("pranet.safetensors"))
    monkeypatch.setattr(Segmenter, "folder", tmp_path / "weights")
    return tmp_path


def test_a_service_starts_with_the_weights_that_are_installed(folder_without_pranet):
    with client_of(folder_without_pranet, "medical-seg", servables("medical-seg")) as made:
        found = {entry["id"]: entry for entry in made.get("/v1/models").json()["data"]}
        assert (found["pranet"]["ready"], found["pranet-v2"]["ready"]) == (False, True)
        assert "come with the package fovea-weights-kvasir-seg" in found["pranet"]["reason"]
        assert made.post("/v1/segment", json={"image": text(EXAMPLE)}).json()["model"] == "pranet-v2"
        told = problem(made.post("/v1/segment", json={"image": text(EXAMPLE), "model": "pranet"}), 503, "model")
        assert "fovea-weights-kvasir-seg" in told["detail"]
