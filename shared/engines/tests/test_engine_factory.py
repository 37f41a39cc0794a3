"""`auto` takes the fastest engine that opens; a wish is granted or refused with its reason."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from fovea.api.tensors import TensorSpec
from fovea.errors import Fault, NotReady
from shared.engines import ModelArtifacts, factory, open_engine
from shared.engines.tests.graphs import identity
from shared.registry import LoadContext

torch.set_num_threads(1)

SPEC = TensorSpec(name="x", datatype="FP32", shape=(-1, 3))


@pytest.fixture
def forms(tmp_path):
    path = tmp_path / "g.onnx"
    path.write_bytes(identity("FP32"))
    return artifacts(lambda: path)


def artifacts(graph):
    return ModelArtifacts("net", (SPEC,), (SPEC,), graph=graph, network=lambda: (nn.Identity(), None))


def place(engine="auto", **more):
    return LoadContext(engine=engine, threads=1, **more)


@pytest.mark.parametrize(("wish", "got"), [("auto", "onnx"), ("onnx", "onnx"), ("torch", "torch")])
def test_wished_engine_is_opened(forms, wish, got):
    engine = open_engine(place(wish), forms)
    assert engine.name == got
    x = np.ones((2, 3), np.float32)
    assert (next(iter(engine.run({"x": x}).values())) == x).all()
    engine.close()


def test_auto_goes_on_to_torch_when_the_graph_does_not_open_or_the_export_is_wrong(tmp_path):
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"no graph")

    def wrong():
        raise Fault("The ONNX graph differs from the network.")

    assert [open_engine(place(), artifacts(graph)).name for graph in (lambda: broken, wrong)] == ["torch"] * 2
    with pytest.raises(Fault):
        open_engine(place("onnx"), ModelArtifacts("net", graph=wrong))


def test_auto_says_what_was_tried_when_nothing_opens():
    with pytest.raises(NotReady, match=r"onnx: 'net' has no ONNX form\. torch: 'net' has no torch form\."):
        open_engine(place(), ModelArtifacts("net"))


def test_only_the_form_that_is_needed_is_made_and_triton_needs_an_address(forms):
    def never():
        pytest.fail("was made")

    open_engine(place("torch"), artifacts(never))
    open_engine(place("onnx"), ModelArtifacts("net", graph=forms.graph, network=never))
    with pytest.raises(NotReady, match="No Triton server is named") as caught:
        open_engine(place("triton"), forms)
    assert "FOVEA_TRITON_URL" in caught.value.hint


def test_missing_library_is_named(forms, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.delitem(sys.modules, "shared.engines.torch", raising=False)
    with pytest.raises(NotReady, match="needs the library torch"):
        factory.open_engine(place("torch"), forms)
    monkeypatch.setattr(factory.importlib.util, "find_spec", lambda _: None)
    assert factory.missing_parts()["onnx"] == "the library onnxruntime is not installed"


def test_importing_the_package_loads_no_engine_library():
    script = (
        "import sys, shared.engines;"
        "print([n for n in ('torch', 'onnxruntime', 'tritonclient', 'onnx') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=Path.cwd())
    assert done.stdout.strip() == "[]"
