"""One of our own services stands in for a Triton server: a model served from there answers as the model itself."""

import importlib

import numpy as np
import pytest

from fovea.errors import NotFound
from shared.registry import CallContext, LoadContext, servables
from shared.registry.discovery import services_with_models
from shared.rpc.tensors import DTYPES
from shared.serving.tests.oip_mirrors import serving
from shared.settings import Settings
from shared.vision.servable import VisionServable
from tests.contract.sameness import differences

NAME = "pranet"

MODELS = {name: kind for service in services_with_models() for name, kind in servables(service).items()}
VISION = {name: kind for name, kind in MODELS.items() if issubclass(kind, VisionServable)}


@pytest.fixture(scope="module")
def replica(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fovea")
    settings = Settings(data_dir=folder, intra_op_threads=1, shutdown_grace_s=1, redis_url=None)
    with serving({NAME: VISION[NAME]}, settings) as running:
        assert running.host.ready, running.host.missing()
        yield running


@pytest.fixture(scope="module", params=["http", "grpc"])
def remote(request, replica, tmp_path_factory):
    url = replica.http if request.param == "http" else f"grpc://{replica.grpc}"
    place = LoadContext(engine="triton", cache=tmp_path_factory.mktemp("cache"), options={"triton_url": url})
    servable = VISION[NAME].load(place)
    yield servable
    servable.close()


def test_pictures_batches_and_threads_are_answered_as_the_model_itself_answers(remote, replica):
    request = remote.example().model_copy(update={"include": ("mask", "contours", "rle", "probability")})
    (ours,), (theirs,) = (s.predict([request], CallContext()) for s in (remote, replica.host.servable(NAME)))
    assert (ours.engine, theirs.engine) == ("triton", "onnx")
    assert not ours.empty
    assert differences(ours.model_copy(update={"engine": "onnx"}), theirs) == []
    (spec,) = remote.engine.inputs
    x = np.random.default_rng(2).standard_normal((3, *spec.shape[1:])).astype(DTYPES[spec.datatype])
    together = remote.engine.run({spec.name: x})
    for row in range(3):
        for name, array in replica.host.servable(NAME).engine.run({spec.name: x[row : row + 1]}).items():
            assert np.allclose(together[name][row], array[0], atol=1e-4)


@pytest.mark.parametrize("name", VISION)
def test_a_model_is_asked_for_by_its_own_name(name, tmp_path, monkeypatch):
    asked = []

    def refuse(url, model, **_):
        asked.append(model)
        raise NotFound(f"There is no {model} here.")

    monkeypatch.setattr(importlib.import_module("shared.engines.triton"), "TritonEngine", refuse)
    place = LoadContext(engine="triton", cache=tmp_path, weights=tmp_path / "none", options={"triton_url": "x:1"})
    with pytest.raises(NotFound):
        VISION[name].load(place)
    assert asked == [name]
