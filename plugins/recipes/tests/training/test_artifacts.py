"""Graphs that a recipe leaves and their parity, and its weights in the tree."""

import json
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from fovea.api.tensors import TensorSpec
from fovea.errors import NotReady
from fovea_recipes.training.recipe import Recipe, recipe_named
from shared.engines import open_engine
from shared.export import torch_form as module
from shared.export.artifacts import ExportedForms, check_tensors, refine_card
from shared.registry import Card, LoadContext, Metric, Paper
from shared.registry.discovery import shipped_weights
from shared.registry.weights import Manifest, NetworkSpec, read_manifest, read_weights, write_weights
from shared.storage import ObjectStore

pytestmark = pytest.mark.usefixtures("fresh_exports")

torch.set_num_threads(1)

GIVEN = TensorSpec(name="x", datatype="FP32", shape=(-1, 2, -1))
WANTED = TensorSpec(name="y", datatype="FP32", shape=(-1, 3, -1))


class Line(nn.Module):
    """A convolution over a line, and twice of it under another name."""

    def __init__(self, kernel=3):
        super().__init__()
        self.conv = nn.Conv1d(2, 3, kernel, padding=kernel // 2)

    def forward(self, x):
        return self.conv(x)

    def twice(self, x):
        return 2 * self.conv(x)


@pytest.fixture
def weights(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "network", lambda name, **config: {"line": Line}[name](**config))
    arrays = {key: value.numpy() for key, value in Line(5).state_dict().items()}
    facts = {"origin": "trained", "dtype": "float32", "parameters": 33, "metrics": {"m": 0.5}}
    manifest = Manifest(name="line", network=NetworkSpec(name="line", config={"kernel": 5}), **facts)
    write_weights(tmp_path, arrays, manifest)
    return read_weights(tmp_path / "line.safetensors")


def made(weights, tmp_path, **more):
    shapes = ({"x": (1, 2, 7)}, {"x": (2, 2, 9)})
    return ExportedForms(weights, tmp_path / "cache", (GIVEN,), (WANTED,), tag="v1", shapes=shapes, **more)


@pytest.mark.parametrize("call", [None, "twice"])
def test_graph_and_network_agree_at_any_length(weights, tmp_path, call):
    artefacts, x = made(weights, tmp_path, call=call), np.random.default_rng(1).normal(size=(3, 2, 11))
    answers = [
        open_engine(LoadContext(engine=engine), artefacts.forms("line")).run({"x": x.astype(np.float32)})["y"]
        for engine in ("onnx", "torch")
    ]
    assert answers[0].shape == (3, 3, 11)
    assert np.abs(answers[0] - answers[1]).max() < 1e-5
    expected = artefacts.network()(torch.from_numpy(x).float()).detach().numpy() * (2 if call else 1)
    assert np.abs(answers[1] - expected).max() < 1e-6


def test_graph_is_exported_once_its_parity_kept_and_fetched_by_the_next_process(weights, tmp_path, monkeypatch):
    artefacts = made(weights, tmp_path)
    assert artefacts.parity() is None
    path = artefacts.graph()
    objects = ObjectStore.open((tmp_path / "objects").as_uri())
    first = made(weights, tmp_path / "one").graph(objects)
    monkeypatch.setattr(ExportedForms, "_export", lambda _: pytest.fail("was exported again"))
    assert artefacts.graph() == path
    assert weights.manifest.sha256 in path.name
    parity = artefacts.parity()
    assert parity.max_difference == json.loads(path.with_suffix(".json").read_text())["max_difference"]
    assert parity.max_difference < 1e-5 < parity.max_value
    assert [shape for (shape,) in parity.shapes] == [[1, 2, 7], [2, 2, 9]]
    other = made(weights, tmp_path / "two")
    assert other.graph(objects).read_bytes() == first.read_bytes()
    assert other.parity() == made(weights, tmp_path / "one").parity()


@pytest.mark.parametrize(("shape", "count"), [((-1, 4, -1), 1), ((-1, 2, 8), 1), ((-1, 2, -1), 2)])
def test_engine_with_other_tensors_is_closed_and_refused(weights, tmp_path, shape, count):
    closed: list[bool] = []
    given, outputs = (TensorSpec(name="x", datatype="FP32", shape=shape),), (WANTED,) * count
    other = SimpleNamespace(name="triton", inputs=given, outputs=outputs, close=lambda: closed.append(True))
    with pytest.raises(NotReady, match="triton engine holds another network"):
        check_tensors(other, made(weights, tmp_path))
    assert closed == [True]


def test_card_tells_what_was_loaded_after_it_was_prepared(weights, tmp_path):
    facts = {"task": "segment", "summary": "s", "paper": Paper(title="t", venue="v", year=2020), "licence": "l"}
    metrics = (Metric(name="m", ours=None, data="d"), Metric(name="other", ours=None, data="d"))
    card, artefacts = Card(name="line", notes=("First.",), metrics=metrics, **facts), made(weights, tmp_path)
    assert refine_card(card, artefacts, SimpleNamespace(name="torch", reason="")).notes == ("First.",)
    artefacts.graph()
    served = refine_card(card, artefacts, SimpleNamespace(name="onnx", reason="It is first.", provider="CUDA"))
    assert (served.weights, served.parameters) == (weights.manifest.sha256, 33)
    assert [metric.ours for metric in served.metrics] == [0.5, None]
    assert "differs from torch" in served.notes[1]
    assert served.notes[2] == "Runs on onnx (CUDA): It is first."

    def halved(net):
        net.load_state_dict({key: value / 2 for key, value in net.state_dict().items()})
        return net

    x, prepared = torch.randn(1, 2, 7), made(weights, tmp_path, prepare=halved).network()
    assert torch.allclose(prepared(x), made(weights, tmp_path).network()(x) / 2)
    assert not prepared.training


SYNTHETIC = (
    "bmn", "bmn-csa", "fovea-pointer-hull", "fovea-pointer-tour", "hieraedgenet-synthetic-pollen", "oat",
    "pranet-v2",
)  # fmt: skip
"""Weights whose test data follow from a seed, so that anybody can measure them again."""

TRAINED = [name for name, file in shipped_weights().items() if read_manifest(file).origin == "trained"]


def recipe_of(manifest: Manifest) -> Recipe:
    options = dict(manifest.recipe)
    return recipe_named(options.pop("name")).model_validate(options)


@pytest.mark.parametrize("name", TRAINED)
def test_weights_are_of_a_recipe_that_takes_their_knobs(name):
    manifest = read_manifest(shipped_weights()[name])
    assert recipe_of(manifest).seed == manifest.recipe["seed"]


@pytest.mark.release
@pytest.mark.parametrize("name", SYNTHETIC)
def test_figures_on_synthetic_data_are_measured_again(name):
    weights = read_weights(shipped_weights()[name])
    network = ExportedForms(weights, Path(), (), (), "again").network()
    found = recipe_of(weights.manifest).measure(network)
    known = {name: value for name, value in weights.manifest.metrics.items() if name in found}
    assert known
    assert {name: found[name] for name in known} == pytest.approx(known, abs=2e-3, nan_ok=True)
    assert any(math.isfinite(value) for value in known.values())
