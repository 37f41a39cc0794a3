"""`POST /v1/segment` over the real model: masks, bad pictures, limits. What all routes share is tested with them."""

import base64
import shutil

import numpy as np
import pytest
from PIL import Image

from fovea.api.mask import SegmentOut
from services.medical_seg.models.pranet import PraNetSegmenter
from services.medical_seg.segmenter import Segmenter
from shared.registry.discovery import servables
from tests.bad_pictures import encoded
from tests.harness.models import answered, client_of, problem

EXAMPLE = PraNetSegmenter.sample.read_bytes()
"""One picture of each status; the contract suite sends all of them to the Servable."""


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    limits = {"max_images": 4, "max_pixels": 2_000_000, "max_body_bytes": 3_000_000}
    with client_of(tmp_path_factory.mktemp("fovea"), "medical-seg", {"pranet": PraNetSegmenter}, **limits) as made:
        yield made


def text(data):
    return base64.b64encode(data).decode()


@pytest.fixture(scope="module")
def plain(client):
    return answered(client.post("/v1/segment", json={"image": text(EXAMPLE)}), SegmentOut)


def test_limits_are_named_with_limit_and_value(client):
    big = encoded(Image.new("L", (2001, 1000)), "PNG")
    told = problem(client.post("/v1/segment", json={"image": text(big)}), 413, "image")
    assert "2,001,000 in all; the limit is 2,000,000" in told["detail"]
    long = client.post("/v1/segment", content=bytes(3_000_001), headers={"content-type": "image/png"})
    assert long.status_code == 413
    limits = client.get("/v1/models/pranet").json()["limits"]
    assert (limits["max_pixels"], limits["max_body_bytes"], limits["max_images"]) == (2_000_000, 3_000_000, 4)


def test_threshold_and_stretching_move_the_mask(client, plain):
    strict = answered(client.post("/v1/segment", json={"image": text(EXAMPLE), "threshold": 0.95}), SegmentOut)
    assert strict.area < plain.area
    far = np.prod(np.mgrid[:160, :160] / 160, axis=0)[..., None]
    mucosa = text(encoded(Image.fromarray(np.uint8((120, 60, 50) + far * (100, 60, 40))), "PNG"))
    assert answered(client.post("/v1/segment", json={"image": mucosa}), SegmentOut).empty
    assert not answered(client.post("/v1/segment", json={"image": mucosa, "normalise": "minmax"}), SegmentOut).empty


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
