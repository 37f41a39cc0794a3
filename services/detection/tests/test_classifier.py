"""Classifiers: whole pictures, and pictures cut into patches."""

import csv
import io

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fovea.api.classes import ClassifyIn, ClassifyOut
from fovea.api.image import Times
from fovea.errors import InvalidOption
from services.detection.boxes.drawing import class_colour
from services.detection.models.patnet_network import PATNet
from services.detection.servables.classifier import FEATURE_MAPS, Classifier
from services.detection.servables.patches import classify, count_by_class, divide, resize_patch, tint_patches, to_csv
from shared.registry import CallContext, LoadContext
from shared.registry.weights import Manifest, NetworkSpec, write_weights
from shared.vision.decode import decode
from shared.vision.draw import encode
from tests.harness.models import toy_card
from tests.harness.rendering import predict_as

NAMES = ("a", "b", "c")


class Tiny(Classifier):
    """A PATNet that knows nothing."""

    weights = "tiny"
    card = toy_card("tiny", "classify", example={"tile": 96})


def write(folder, **facts):
    torch.manual_seed(0)
    net = PATNet("t0", classes=3)
    torch.nn.init.normal_(net.head.weight, std=3)
    spec = NetworkSpec(name="patnet", config={"size": "t0", "classes": 3})
    arrays = {key: tensor.numpy() for key, tensor in net.state_dict().items()}
    write_weights(folder, arrays, Manifest(name="tiny", origin="trained", network=spec, **facts))


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    home = tmp_path_factory.mktemp("tiny")
    write(home, recipe={"classes": NAMES, "side": 64})
    return LoadContext(cache=home / "cache", weights=home, threads=1)


@pytest.fixture(scope="module")
def tiny(place):
    servable = Tiny.load(place)
    yield servable
    servable.close()


@pytest.fixture(scope="module")
def page():
    return encode(np.random.default_rng(0).integers(0, 256, (130, 200, 3), np.uint8))


def test_a_whole_picture_has_one_result_and_is_seen_as_its_recipe_says_or_as_imagenet_ones(tiny, page, place, tmp_path):
    (answer,) = tiny.predict([ClassifyIn(image=page, top_k=2)], CallContext())
    assert (answer.width, answer.height, answer.rows, answer.columns) == (200, 130, 1, 1)
    (result,) = answer.results
    assert (result.box, len(result.top)) == ((0, 0, 200, 130), 2)
    assert result.label in NAMES
    assert (answer.engine, answer.notes) == ("onnx", ["Squashed to 64×64 (antialiased bicubic)."])
    write(tmp_path)
    other = Tiny.load(LoadContext(cache=place.cache, weights=tmp_path, threads=1))
    (answer,) = other.predict([ClassifyIn(image=page)], CallContext())
    assert answer.results[0].label.startswith("class ")
    assert answer.notes == ["The middle, 90% of the shorter side, scaled to 224×224 (antialiased bicubic)."]
    (answer,) = other.predict([ClassifyIn(image=page, tile=100)], CallContext())
    assert answer.notes == ["Squashed to 224×224 (antialiased bicubic)."]
    other.close()


def test_patches_are_the_pictures_they_cut_out_and_their_feature_maps_come_as_an_archive(tiny, page):
    (answer,) = tiny.predict([ClassifyIn(image=page, tile=65)], CallContext())
    assert (answer.rows, answer.columns) == (2, 3)
    pixels = decode(page).pixels
    for result in answer.results:
        x1, y1, x2, y2 = result.box
        (alone,) = tiny.predict([ClassifyIn(image=encode(np.ascontiguousarray(pixels[y1:y2, x1:x2])))], CallContext())
        assert alone.results[0].label == result.label
        assert alone.results[0].probability == pytest.approx(result.probability, abs=1e-4)
    answer, made = predict_as(tiny, ClassifyIn(image=page, tile=65), "application/x-npz")
    archive = np.load(io.BytesIO(made))
    assert (sorted(archive), archive["stage4"].shape) == (["boxes", "logits", *FEATURE_MAPS], (6, 256, 2, 2))
    assert archive["boxes"].tolist() == [list(result.box) for result in answer.results]
    assert archive["logits"].argmax(1).tolist() == [result.class_id for result in answer.results]


KINDS = ("crack", "hole", "none")


def answer(logits, boxes, height, width):
    results = classify(np.array(logits, np.float32), boxes, KINDS, 3)
    return ClassifyOut(
        model="m", version="1", engine="onnx", width=width, height=height, rows=boxes.rows, columns=boxes.columns,
        results=results, counts=count_by_class(results), times=Times(),
    )  # fmt: skip


@given(st.integers(1, 900), st.integers(1, 900), st.integers(32, 300))
def test_patches_cover_every_pixel_once_have_about_the_size_asked_for_and_are_never_too_many(height, width, tile):
    made = divide(height, width, tile)
    seen = np.zeros((height, width), int)
    for left, top, right, bottom in made.boxes:
        seen[top:bottom, left:right] += 1
        assert right - left <= max(1.5 * tile + 1, 1)
        assert right - left >= min(tile, width) / 1.5 - 1
    assert (seen == 1).all()
    assert len(made.boxes) == made.rows * made.columns
    with pytest.raises(InvalidOption, match=r"4,096 patches; the limit is 1,024", check=lambda e: e.field == "tile"):
        divide(1024, 1024, 16)


def test_probabilities_are_a_softmax_a_table_has_a_row_per_patch_and_tints_stay_inside_their_patch():
    (one,) = classify(np.array([[0.0, np.log(3), -1e4]], np.float32), divide(4, 4, None), KINDS, 2)
    assert (one.label, one.class_id, [c.label for c in one.top]) == ("hole", 1, ["hole", "crack"])
    assert [one.probability, one.top[1].probability] == pytest.approx([0.75, 0.25], abs=1e-5)
    rows = list(csv.DictReader(io.StringIO(to_csv(answer(np.eye(3)[[0, 1]] * 9, divide(10, 20, 10), 10, 20)).decode())))
    told = [(r["row"], r["column"], r["x1"], r["label"], r["class_id"]) for r in rows]
    assert told == [("0", "0", "0", "crack", "0"), ("0", "1", "10", "hole", "1")]
    assert float(rows[0]["probability"]) > 0.99
    made = answer([[9, 0, 0], [0, 9, 0], [0, 0.1, 0], [0, 0, 9]], divide(200, 200, 100), 200, 200)
    grey = np.full((200, 200, 3), 128, np.uint8)
    found = tint_patches(grey, made)
    assert (grey == 128).all()
    sure, unsure = found[80, 150].astype(int), found[180, 80].astype(int)
    assert np.abs(sure - 128).sum() > 2 * np.abs(unsure - 128).sum() > 0
    np.testing.assert_array_equal(np.sign(sure - 128), np.sign(np.array(class_colour(1)) - 128))
    assert (found[:30, :60] != found[60, 60]).any()  # its label


def test_a_patch_is_squashed_whole_or_cropped_in_the_middle():
    picture = np.zeros((40, 80, 3), np.uint8)
    picture[:, :40] = 255
    whole = resize_patch(picture, (0, 0, 80, 40), 8, 1.0)
    assert (whole.shape, whole.dtype) == ((8, 8, 3), np.uint8)
    assert whole[0, [0, -1], 0].tolist() == [255, 0]
    cropped = resize_patch(picture, (0, 0, 80, 40), 8, 0.9)  # columns 22 to 58
    assert cropped[0, [0, -1], 0].tolist() == [255, 0]
    assert cropped[0, 3, 0] > 128 > cropped[0, 4, 0]
    assert resize_patch(picture, (50, 0, 80, 40), 8, 0.9).max() == 0
