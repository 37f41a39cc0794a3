"""A classifier behind the platform's contract, with small random weights: no claim about what it knows."""

import io

import numpy as np
import pytest
import torch

from fovea.api.classes import ClassifyIn
from fovea.errors import InvalidOption, UnsupportedMedia
from services.detection.models.patnet_network import PATNet
from services.detection.servables.classifier import FEATURE_MAPS, Classifier
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


def test_a_whole_picture_has_one_result(tiny, page):
    (answer,) = tiny.predict([ClassifyIn(image=page, top_k=2)], CallContext())
    assert (answer.width, answer.height, answer.rows, answer.columns) == (200, 130, 1, 1)
    (result,) = answer.results
    assert (result.box, len(result.top)) == ((0, 0, 200, 130), 2)
    assert result.label in NAMES
    assert (answer.engine, answer.notes) == ("onnx", ["Squashed to 64×64 (antialiased bicubic)."])


def test_patches_are_the_pictures_they_cut_out(tiny, page):
    (answer,) = tiny.predict([ClassifyIn(image=page, tile=65)], CallContext())
    assert (answer.rows, answer.columns) == (2, 3)
    pixels = decode(page).pixels
    for result in answer.results:
        x1, y1, x2, y2 = result.box
        (alone,) = tiny.predict([ClassifyIn(image=encode(np.ascontiguousarray(pixels[y1:y2, x1:x2])))], CallContext())
        assert alone.results[0].label == result.label
        assert alone.results[0].probability == pytest.approx(result.probability, abs=1e-4)


def test_pictures_with_different_grids_share_a_batch_and_errors_stay_alone(tiny, page):
    asked = [ClassifyIn(image=page, tile=65), ClassifyIn(image=b"no picture"), ClassifyIn(image=page, tile=16)]
    asked += [ClassifyIn(image=page), ClassifyIn(image=encode(np.zeros((900, 900, 3), np.uint8)), tile=16)]
    first, broken, many, whole, too_many = tiny.predict(asked, CallContext())
    assert isinstance(broken, UnsupportedMedia)
    assert isinstance(too_many, InvalidOption)
    assert [len(a.results) for a in (first, many, whole)] == [6, 8 * 12, 1]
    (alone,) = tiny.predict([asked[2]], CallContext())
    assert [r.label for r in alone.results] == [r.label for r in many.results]


def test_feature_maps_of_all_patches_come_as_an_archive(tiny, page):
    answer, made = predict_as(tiny, ClassifyIn(image=page, tile=65), "application/x-npz")
    archive = np.load(io.BytesIO(made))
    assert (sorted(archive), archive["stage4"].shape) == (["boxes", "logits", *FEATURE_MAPS], (6, 256, 2, 2))
    assert archive["boxes"].tolist() == [list(result.box) for result in answer.results]
    assert archive["logits"].argmax(1).tolist() == [result.class_id for result in answer.results]


def test_weights_without_a_recipe_are_seen_as_imagenet_ones(place, page, tmp_path):
    write(tmp_path)
    other = Tiny.load(LoadContext(cache=place.cache, weights=tmp_path, threads=1))
    (answer,) = other.predict([ClassifyIn(image=page)], CallContext())
    assert answer.results[0].label.startswith("class ")
    assert answer.notes == ["The middle, 90% of the shorter side, scaled to 224×224 (antialiased bicubic)."]
    (answer,) = other.predict([ClassifyIn(image=page, tile=100)], CallContext())
    assert answer.notes == ["Squashed to 224×224 (antialiased bicubic)."]
    other.close()
