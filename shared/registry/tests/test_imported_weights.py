"""Weights that one process imports are served by another with another folder; only changes are fetched."""

import json
from pathlib import Path

import numpy as np
import pytest

from fovea.errors import NotReady
from shared.registry.imported_weights import fetch_weights, publish_weights
from shared.registry.weights import Manifest, NetworkSpec, read_weights, write_weights
from shared.storage import ObjectStore
from shared.storage.tests.conftest import s3_variables  # noqa: F401  # fixture


@pytest.fixture
def objects(s3_variables, monkeypatch):  # noqa: F811
    for name, value in s3_variables.items():
        monkeypatch.setenv(name, value)
    return ObjectStore.open("s3://fovea/models")


def _write(folder: Path, value: float) -> None:
    manifest = Manifest(name="net", origin="imported", network=NetworkSpec(name="net"), dtype="float32")
    write_weights(folder, {"w": np.full((4,), value, np.float32)}, manifest)


def test_weights_reach_another_machine_and_follow_changes(objects, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    _write(one, 1.0)
    publish_weights(objects, one, "net")
    fetch_weights(objects, two)
    assert read_weights(two / "net.safetensors").arrays["w"][0] == 1.0
    stamp = (two / "net.safetensors").stat().st_mtime_ns
    fetch_weights(objects, two)
    assert (two / "net.safetensors").stat().st_mtime_ns == stamp, "nothing is fetched twice"
    _write(one, 2.0)
    publish_weights(objects, one, "net")
    fetch_weights(objects, two)
    assert read_weights(two / "net.safetensors").arrays["w"][0] == 2.0
    objects.under("weights").delete_all()
    fetch_weights(objects, two)
    assert not (two / "net.safetensors").exists(), "weights that were taken away are not served"
    assert json.loads((two / ".fetched.json").read_text()) == {}


def test_a_store_that_is_away_is_no_reason_for_demo_weights(monkeypatch, tmp_path):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")
    with pytest.raises(NotReady):
        fetch_weights(ObjectStore.open("s3://fovea"), tmp_path)


def test_a_folder_is_its_own_copy(tmp_path):
    objects = ObjectStore.open(tmp_path.as_uri())
    fetch_weights(objects, tmp_path / "weights")
    publish_weights(objects, tmp_path / "weights", "net")
    assert list(tmp_path.iterdir()) == []
