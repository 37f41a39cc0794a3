"""The segmenter: steps before and after the network, pictures, and its route."""

import base64
import io
import shutil

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from fovea.api.mask import SegmentIn
from fovea.api.tensors import TensorSpec
from services.medical_seg import preprocess
from services.medical_seg.models.pranet import PraNetSegmenter
from services.medical_seg.postprocess import MAX_COMPONENTS, encode_forms, extract_mask, measure
from services.medical_seg.preprocess import resize_and_normalise, upsample, upsample_in_strips
from services.medical_seg.segmenter import Segmenter
from shared.registry import CallContext
from shared.registry.discovery import servables
from shared.registry.weights import Manifest, NetworkSpec, Weights
from shared.vision.decode import decode
from shared.vision.mask_regions import decode_run_lengths
from shared.vision.servable import DataConfig
from shared.vision.tests.test_mask_regions import area
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


def test_turned_resized_and_first_frames_are_upright_noted_and_drawn_on(blob):
    stored, animated = (next(one for one in odd() if one.name == name) for name in ("exif-6-jpeg", "animated-webp"))
    assert Image.open(io.BytesIO(stored.data)).size == (48, 64)
    answer = ask(blob, stored.data)
    assert (answer.width, answer.height) == (64, 48)
    assert answer.components[0].centre == pytest.approx((25, 24.75), abs=1)
    plain = ask(blob, encoded(quadrants(), "PNG"))
    assert "32×32" in plain.notes[0]
    assert "align_corners=False" in plain.notes[0]
    assert ask(blob, animated.data).notes[1] == "Only the first frame was read."
    answer = ask(blob, encoded(quadrants(), "PNG"), include=("mask", "overlay"))
    overlay, mask = decode(answer.overlay), decode(answer.mask).pixels[..., 0] > 0
    assert overlay.format == "JPEG"
    change = np.abs(overlay.pixels - np.asarray(quadrants()).astype(int)).max(axis=2)
    assert change[mask].mean() > 30
    assert np.median(change[~mask]) < 10


EXAMPLE = PraNetSegmenter.sample.read_bytes()


def text(data):
    return base64.b64encode(data).decode()


def test_a_service_starts_with_the_weights_that_are_installed_at_the_side_of_their_training(tmp_path, monkeypatch):
    """Without the package of research weights."""
    shutil.copytree(Segmenter.folder, tmp_path / "weights", ignore=shutil.ignore_patterns("pranet.safetensors"))
    monkeypatch.setattr(Segmenter, "folder", tmp_path / "weights")
    with client_of(tmp_path, "medical-seg", servables("medical-seg")) as made:
        found = {entry["id"]: entry for entry in made.get("/v1/models").json()["data"]}
        assert (found["pranet"]["ready"], found["pranet-v2"]["ready"]) == (False, True)
        assert "come with the package fovea-weights-kvasir-seg" in found["pranet"]["reason"]
        assert made.post("/v1/segment", json={"image": text(EXAMPLE)}).json()["model"] == "pranet-v2"
        told = problem(made.post("/v1/segment", json={"image": text(EXAMPLE), "model": "pranet"}), 503, "model")
        assert "fovea-weights-kvasir-seg" in told["detail"]
    manifest = Manifest(name="a", origin="imported", network=NetworkSpec(name="pranet"))
    trained = manifest.model_copy(update={"recipe": {"scale": {"side": 64}}})
    assert [Small.data_config(Weights({}, one)).side for one in (manifest, trained)] == [352, 64]


def by_torch(values, height, width):
    tensor = torch.from_numpy(values)[None, None]
    return F.interpolate(tensor, size=(height, width), mode="bilinear", align_corners=False)[0, 0].numpy()


@given(st.integers(2, 40), st.integers(1, 90), st.integers(1, 90), st.integers(0, 9))
def test_any_size_is_enlarged_as_torch_does(source, height, width, seed):
    values = np.random.default_rng(seed).standard_normal((source, source)).astype(np.float32) * 4
    assert np.abs(upsample(values, height, width) - by_torch(values, height, width)).max() <= 1e-4


def test_bands_are_the_whole_and_pictures_squashed_as_published(monkeypatch):
    values = np.random.default_rng(1).standard_normal((20, 20)).astype(np.float32)
    whole = upsample(values, 101, 70)
    monkeypatch.setattr(preprocess, "_STRIP", 7 * 70)
    bands = list(upsample_in_strips(values, 101, 70))
    assert [rows.stop - rows.start for rows, _ in bands] == [7] * 14 + [3]
    assert np.allclose(np.concatenate([part for _, part in bands]), whole, atol=1e-6)
    pixels = np.random.default_rng(2).integers(0, 256, (70, 110, 3), dtype=np.uint8)
    small = np.asarray(Image.fromarray(pixels).resize((32, 32), Image.Resampling.BILINEAR)) / 255
    expected = (small - (0.485, 0.456, 0.406)) / (0.229, 0.224, 0.225)
    found = resize_and_normalise(pixels, 32)
    assert (found.shape, found.dtype) == ((3, 32, 32), np.float32)
    assert np.abs(found - expected.transpose(2, 0, 1)).max() < 1e-6


def asked(**options):
    return SegmentIn(image=b"x", **options)


def blobs(side=32, *spots):
    """Logits: 8 inside of circles (x, y, radius), falling to -8 outside."""
    y, x = np.mgrid[:side, :side]
    spots = spots or ((10, 12, 6), (25, 24, 3))
    inside = np.max([r - np.hypot(x - cx, y - cy) for cx, cy, r in spots], axis=0)
    return np.clip(4 * inside, -8, 8).astype(np.float32)


NOISE = np.random.default_rng(5).standard_normal((32, 32)).astype(np.float32) * 3


@pytest.mark.parametrize("normalise", ["none", "minmax"])
@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.5, 0.9, 1.0])
def test_mask_is_the_sigmoid_of_the_enlarged_map_over_the_threshold(normalise, threshold):
    expected = torch.from_numpy(by_torch(NOISE, 70, 90)).sigmoid().numpy()
    if normalise == "minmax":
        expected = (expected - expected.min()) / (expected.max() - expected.min() + 1e-8)
    found = extract_mask(NOISE, 70, 90, asked(threshold=threshold, normalise=normalise))
    assert ((found.mask == (expected >= threshold)) | (np.abs(expected - threshold) < 1e-5)).all()
    assert np.abs(found.shades / 255 - expected).max() <= 0.5 / 255 + 1e-5
    assert found.peak == pytest.approx(expected.max(), abs=1e-5)


def test_a_frame_without_a_polyp_is_empty_and_components_are_dropped_by_size_number_and_peak():
    low = np.full((32, 32), -6, np.float32)
    low[3, 3] = -5
    plain = measure(extract_mask(low, 50, 60, asked()))
    assert (plain["empty"], plain["area"], plain["components"], plain["mean_probability"]) == (True, 0, [], 0.0)
    assert plain["max_probability"] < 0.01
    assert not measure(extract_mask(low, 50, 60, asked(normalise="minmax")))["empty"]
    found = extract_mask(np.array([[-3e4, 3e4], [0, 1e30]], np.float32), 8, 8, asked())
    assert (found.peak, found.shades.min()) == (1.0, 0)
    noise = np.random.default_rng(6).standard_normal((120, 120)).astype(np.float32)
    found = extract_mask(noise, 360, 360, asked(threshold=0.7))
    told, made = measure(found), encode_forms(found, asked(include=("contours",)))
    assert told["component_count"] > MAX_COMPONENTS == len(told["components"])
    assert sum(not contour.hole for contour in made["contours"]) == MAX_COMPONENTS
    areas = [component.area for component in told["components"]]
    assert areas == sorted(areas, reverse=True)
    map_ = np.where(blobs(64, (16, 16, 8)) > 0, 1.0, np.where(blobs(64, (48, 48, 8)) > 0, 3.0, -6.0)).astype(np.float32)
    both, one, none = (extract_mask(map_, 64, 64, asked(min_peak=peak)) for peak in (0.0, 0.9, 1.0))
    assert [len(found.components) for found in (both, one, none)] == [2, 1, 0]
    assert one.components[0].box[0] > 32
    assert not none.mask.any()


def test_numbers_describe_the_components_of_which_small_ones_or_all_but_the_largest_are_dropped():
    found = extract_mask(blobs(), 64, 64, asked())
    told = measure(found)
    assert told["component_count"] == 2
    large, small = told["components"]
    assert large.area > small.area
    assert large.area + small.area == told["area"] == found.mask.sum()
    assert told["area_percent"] == pytest.approx(100 * told["area"] / 4096, abs=1e-3)
    assert large.centre == pytest.approx((21, 25), abs=0.6)  # twice the map's coordinates, plus half a pixel
    x1, y1, x2, y2 = large.box
    assert found.mask[y1:y2, x1:x2].sum() == large.area
    assert 0.5 <= small.probability <= told["max_probability"] <= 1
    for options in ({"keep_largest": True}, {"min_area": small.area + 1}):
        found = extract_mask(blobs(), 64, 64, asked(**options))
        assert ([c.box for c in measure(found)["components"]], found.mask.sum()) == ([large.box], large.area)
    assert measure(extract_mask(blobs(), 64, 64, asked(min_area=10**6)))["empty"]
    assert measure(extract_mask(blobs(), 64, 64, asked(min_area=small.area)))["component_count"] == 2


@given(st.integers(1, 60), st.integers(1, 60), st.sampled_from([0.2, 0.5, 0.8]), st.booleans())
def test_all_forms_hold_the_same_mask(height, width, threshold, largest):
    forms = ("mask", "contours", "rle", "probability")
    request = asked(threshold=threshold, keep_largest=largest, include=forms)
    found = extract_mask(NOISE, height, width, request)
    made = encode_forms(found, request)
    assert ((decode(made["mask"]).pixels[..., 0] == 255) == found.mask).all()
    assert (decode_run_lengths(made["rle"].counts, *made["rle"].size) == found.mask).all()
    assert (decode(made["probability"]).pixels[..., 0] == found.shades).all()
    assert sum(area(np.array(contour.points)) for contour in made["contours"]) == found.mask.sum()
