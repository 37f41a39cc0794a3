"""Committed weights find what they were trained on in new slides."""

import numpy as np
import onnx
import pytest

from fovea.api.boxes import DetectIn
from fovea.errors import InvalidOption
from fovea_recipes.detection.hieraedgenet.data import draw_slide
from fovea_recipes.training.data.synthetic import draw_split
from services.detection.models.hieraedgenet import HieraEdgeNetBoxDetector
from shared.registry import CallContext, LoadContext
from shared.vision.draw import encode


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return LoadContext(cache=tmp_path_factory.mktemp("cache"), weights=tmp_path_factory.mktemp("none"), threads=1)


@pytest.fixture(scope="module")
def served(place):
    servable = HieraEdgeNetBoxDetector.load(place)
    yield servable
    servable.close()


def test_the_served_graph_has_no_fourier_operator_and_takes_one_size(served, place):
    (graph,) = place.cache.glob("hieraedgenet-synthetic-pollen-*.onnx")
    assert not {"DFT", "STFT"} & {node.op_type for node in onnx.load(graph).graph.node}
    assert (served.engine.name, served.engine.inputs[0].shape) == ("onnx", (-1, 3, 192, 192))
    (refused,) = served.predict([DetectIn(image=served.example().image, size=320)], CallContext())
    assert isinstance(refused, InvalidOption)
    assert refused.field == "size"


def test_most_large_spiny_grains_of_new_slides_are_found(served):
    held = draw_split(draw_slide, "test", 24, 88, 192)
    answers = served.predict(
        [DetectIn(image=encode(image), classes=("spiny-large",)) for image in held.images], CallContext()
    )
    hits = []
    for index, answer in enumerate(answers):
        found = [np.array(one.box).reshape(2, 2).mean(0) for one in answer.detections]
        for kind, *box in held.boxes(index).tolist():
            if kind == 7:
                hits.append(any((np.abs(middle - np.reshape(box, (2, 2)).mean(0)) < 6).all() for middle in found))
    assert len(hits) >= 5
    assert np.mean(hits) >= 0.8
