"""The committed HieraEdgeNet of pollen: it finds large spiny grains of new slides, and is served in micrometres."""

import csv
import io
import zipfile

import numpy as np
import onnx
import pytest

from services.detection.models.hieraedgenet import HieraEdgeNetBoxDetector
from services.detection.recipes.hieraedgenet.data import KINDS, draw_split
from shared.api.boxes import DetectIn
from shared.errors import InvalidOption
from shared.registry import CallContext, LoadContext
from shared.vision.decode import decode
from shared.vision.draw import encode


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    home = tmp_path_factory.mktemp("place")
    return LoadContext(cache=home / "cache", weights=home / "none", threads=1)


@pytest.fixture(scope="module")
def served(place):
    servable = HieraEdgeNetBoxDetector.load(place)
    yield servable
    servable.close()


@pytest.fixture(scope="module")
def found(served):
    (answer,) = served.predict([served.example()], CallContext())
    return answer


def test_the_served_graph_has_no_fourier_operator_and_takes_one_size(served, place):
    (graph,) = place.cache.glob("hieraedgenet-synthetic-pollen-*.onnx")
    assert not {"DFT", "STFT"} & {node.op_type for node in onnx.load(graph).graph.node}
    assert served.engine.name == "onnx"
    assert served.engine.inputs[0].shape == (-1, 3, 192, 192)
    (refused,) = served.predict([DetectIn(image=served.example().image, size=320)], CallContext())
    assert isinstance(refused, InvalidOption)
    assert refused.field == "size"


def test_most_large_spiny_grains_of_new_slides_are_found(served):
    held = draw_split("test", 24, seed=88)
    answers = served.predict(
        [DetectIn(image=encode(image), classes=("spiny-large",)) for image in held.images], CallContext()
    )
    hits = []
    for index, answer in enumerate(answers):
        for kind, *box in held.of(index).tolist():
            if kind == 7:
                centre = np.array([box[0] + box[2], box[1] + box[3]]) / 2
                hits.append(
                    any((np.abs(np.array(d.box).reshape(2, 2).mean(0) - centre) < 6).all() for d in answer.detections)
                )
    assert len(hits) >= 5
    assert np.mean(hits) >= 0.8


def test_grains_have_sizes_in_micrometres_and_are_tallied_by_class(found):
    assert found.detections
    for each in found.detections:
        assert each.label in KINDS
        assert each.microns.radius == pytest.approx(each.radius * 0.5, abs=1e-3)  # the example says half a µm per pixel
    assert sum(tally.count for tally in found.summary.values()) == len(found.detections)
    assert sum(tally.percent for tally in found.summary.values()) == pytest.approx(100, abs=0.1)
    assert all(tally.mean_radius_um is not None for tally in found.summary.values())


def test_a_slide_comes_back_as_a_table_a_picture_and_crops_by_class(served, found):
    request = served.example()
    rows = list(csv.DictReader(io.StringIO(served.render(request, found, "text/csv").decode())))
    assert [row["label"] for row in rows] == [each.label for each in found.detections]
    assert all(float(row["radius_um"]) > 0 for row in rows)
    picture = decode(served.render(request, found, "image/png")).pixels
    assert picture.shape == (192, 192, 3)
    with zipfile.ZipFile(io.BytesIO(served.render(request, found, "application/zip"))) as archive:
        assert {name.split("/")[0] for name in archive.namelist()} == set(found.counts)


def test_a_large_slide_is_searched_in_slices(served):
    held = draw_split("test", 4, seed=89)
    page = np.concatenate([np.concatenate(held.images[:2], 1), np.concatenate(held.images[2:], 1)])
    whole, sliced = served.predict(
        [DetectIn(image=encode(page)), DetectIn(image=encode(page), tile=192)], CallContext()
    )
    assert sliced.slices >= 4
    assert len(sliced.detections) >= len(whole.detections)
    assert sliced.width == 384
