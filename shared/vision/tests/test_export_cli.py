"""`fovea export triton` writes a repository of real models that Triton's schema and ONNX Runtime read."""

import numpy as np
import onnxruntime
import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as schema
from typer.testing import CliRunner

from fovea.errors import InvalidOption
from services.detection.servables.classifier import PATCHES_PER_RUN
from shared.registry.discovery import servables
from shared.registry.weights import Manifest, NetworkSpec, write_weights
from shared.settings import settings
from shared.vision.export_cli import export, find_exportable


@pytest.fixture(autouse=True)
def _folder_of_this_test(tmp_path, monkeypatch):
    monkeypatch.setenv("FOVEA_DATA_DIR", str(tmp_path / "state"))
    settings.cache_clear()
    yield
    monkeypatch.undo()
    settings.cache_clear()


def test_a_served_model_becomes_a_repository(tmp_path):
    name = min(servables("medical-seg"))
    ran = CliRunner().invoke(export, ["triton", str(tmp_path / "repository"), name, "--cpu"])
    assert ran.exit_code == 0, ran.output
    assert f"--model-repository={tmp_path}/repository, then" in ran.output  # in one line, to be copied
    place = tmp_path / "repository" / name
    config = text_format.Parse((place / "config.pbtxt").read_text("utf-8"), schema.ModelConfig())
    session = onnxruntime.InferenceSession(place / "1" / "model.onnx")
    assert [each.name for each in config.output] == [each.name for each in session.get_outputs()]
    assert (config.name, config.max_batch_size) == (name, PATCHES_PER_RUN)


def test_a_model_that_was_trained_here_is_found_and_one_without_a_graph_named_with_those_that_have_one():
    manifest = Manifest(name="mine", origin="trained", network=NetworkSpec(name="pranet-lite"), serves="pranet")
    write_weights(settings().weights_dir, {"x": np.zeros(3, np.float32)}, manifest)
    assert find_exportable("mine").card.name == "mine"
    with pytest.raises(InvalidOption, check=lambda e: "pranet" in str(e.hint)):
        find_exportable("smollm2-135m-instruct")
