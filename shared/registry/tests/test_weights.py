"""Weights files: verified before they are read, stored whole, and imported ones served by another process."""

import json
from pathlib import Path

import numpy as np
import pytest

from fovea.errors import NotReady
from shared.registry.imported_weights import fetch_weights
from shared.registry.measured import measured_metrics
from shared.registry.weights import (
    PACKAGES,
    Manifest,
    NetworkSpec,
    find_weights,
    pack_kernels,
    read_weights,
    unpack_kernels,
    write_weights,
)
from shared.settings import settings
from shared.storage import ObjectStore
from shared.storage.tests.conftest import s3_variables  # noqa: F401  # fixture

ARRAYS = {"conv.weight": np.linspace(-1, 1, 12, dtype=np.float32).reshape(3, 4), "steps": np.array(7, dtype=np.int64)}


def manifest(**facts) -> Manifest:
    return Manifest(name="toy", origin="trained", network=NetworkSpec(name="toy", config={"width": 0.5}), **facts)


def test_weights_come_back_as_float32_with_the_facts_of_their_file_also_what_float16_cannot_hold(tmp_path):
    written = write_weights(tmp_path, ARRAYS, manifest(metrics={"dice": 0.9}))
    found = read_weights(tmp_path / "toy.safetensors")
    assert found.manifest == written
    assert (written.tensors, written.bytes) == (2, (tmp_path / "toy.safetensors").stat().st_size)
    assert found.arrays["conv.weight"].dtype == np.float32
    np.testing.assert_allclose(found.arrays["conv.weight"], ARRAYS["conv.weight"], atol=1e-3)
    assert found.arrays["steps"] == 7
    large = {"bn.running_var": np.array([1e6, 1.0], dtype=np.float32)}
    assert write_weights(tmp_path, large, manifest()).sha256 != written.sha256
    found = read_weights(tmp_path / "toy.safetensors").arrays
    np.testing.assert_array_equal(found["bn.running_var"], large["bn.running_var"])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["toy.json", "toy.safetensors"]


def test_a_changed_byte_and_a_longer_file_are_refused_before_anything_is_parsed(tmp_path):
    write_weights(tmp_path, ARRAYS, manifest())
    file = tmp_path / "toy.safetensors"
    raw = file.read_bytes()
    # The first byte is in the length of the header: a parser would fail or worse.
    for changed, told in ((bytes([raw[0] ^ 1]) + raw[1:], "sha256"), (raw + b"x", "bytes instead of")):
        file.write_bytes(changed)
        with pytest.raises(NotReady, match=told):
            read_weights(file)


def test_a_licence_that_the_operator_does_not_allow_is_refused_by_name(tmp_path, monkeypatch):
    file = tmp_path / "toy.safetensors"
    allow = {"": (True, True), "Apache-2.0, MIT": (True, False), "MIT": (False, False)}
    for licences, served in allow.items():
        monkeypatch.setenv("FOVEA_WEIGHTS_LICENCES", licences)
        settings.cache_clear()
        for licence, is_served in zip(("Apache-2.0", "LicenseRef-X"), served, strict=True):
            write_weights(tmp_path, ARRAYS, manifest(licence=licence))
            if is_served:
                assert read_weights(file).manifest.licence == licence
                continue
            with pytest.raises(NotReady, match=rf"'toy' have the licence {licence}") as refused:
                read_weights(file)
            assert "FOVEA_WEIGHTS_LICENCES" in refused.value.hint
    monkeypatch.undo()
    settings.cache_clear()


@pytest.mark.parametrize(("licence", "package"), PACKAGES.items())
def test_weights_that_are_not_installed_are_named_with_their_package_and_imported_ones_win(tmp_path, licence, package):
    with pytest.raises(NotReady) as refused:
        find_weights("toy", tmp_path, tmp_path / "own")
    assert "fovea import toy" in (refused.value.hint or "")
    write_weights(tmp_path, ARRAYS, manifest(licence=licence))
    assert find_weights("toy", tmp_path, tmp_path / "own") == tmp_path / "toy.safetensors"
    (tmp_path / "toy.safetensors").unlink()
    with pytest.raises(NotReady, match=rf"'toy' come with the package {package}, which") as missing:
        find_weights("toy", tmp_path, tmp_path / "own")
    assert missing.value.hint == f"Try: pip install {package}"
    for folder in (tmp_path / "own", tmp_path):
        write_weights(folder, ARRAYS, manifest())
        assert find_weights("toy", tmp_path, tmp_path / "own").parent.name == "own"


def test_weights_without_a_proper_manifest_are_not_served(tmp_path):
    write_weights(tmp_path, ARRAYS, manifest())
    beside = tmp_path / "toy.json"
    beside.unlink()
    for text in (None, "", "{", '{"name": "toy"}', '{"name": "toy", "origin": "found on the web"}'):
        if text is not None:
            beside.write_text(text)
        with pytest.raises(NotReady, match=r"toy\.json"):
            read_weights(tmp_path / "toy.safetensors")


def test_each_output_of_packed_kernels_is_within_half_a_step_of_its_own_scale():
    rng = np.random.default_rng(0)
    scales = np.logspace(-3, 1, 16, dtype=np.float32)[:, None, None, None]
    kernel = rng.normal(size=(16, 8, 3, 3)).astype(np.float32) * scales
    kernel[3] = 0
    given = {"kernel": kernel, "bias": rng.normal(size=16).astype(np.float32), "count": np.array(7)}
    found = unpack_kernels(pack_kernels(given))
    step = np.abs(kernel).reshape(16, -1).max(axis=1) / 127
    assert (np.abs(found["kernel"] - kernel).reshape(16, -1).max(axis=1) <= 0.55 * step + 1e-7).all()
    assert found.keys() == given.keys()
    assert np.array_equal(found["bias"], given["bias"])


def test_familiar_features_are_kept_apart_from_the_network(tmp_path):
    write_weights(tmp_path, {**ARRAYS, "familiar.mean": np.ones(4, np.float32)}, manifest(constants={"novelty": 1.5}))
    found = read_weights(tmp_path / "toy.safetensors")
    assert found.arrays.keys() == ARRAYS.keys()
    assert (found.familiar.keys(), found.manifest.constants) == ({"familiar.mean"}, {"novelty": 1.5})


def measured(data: dict[str, str], **metrics: float) -> Manifest:
    return manifest(data=data, metrics=metrics)


def test_a_figure_says_on_which_pictures_it_was_measured_and_what_the_warning_learnt_from():
    real = {"measured_on": "Kvasir-SEG (real), 100 held-out pictures"}
    dice, clean = measured_metrics(measured(real, dice=0.9, clean_crops=1.0, crops=58.0))
    assert dice.data == "Kvasir-SEG (real), 100 held-out pictures"
    assert clean.data == "Kvasir-SEG (real), 100 held-out pictures, 58 crops of them"
    boxes = measured(real, map50=0.9, count_error_all=0.2).model_copy(update={"constants": {"confidence": 0.5}})
    assert [one.data.endswith("the others chose the threshold") for one in measured_metrics(boxes)] == [False, True]
    facts = measured({"measured_on": "clothes (real), 9 held-out pictures"}, auroc_cells=1.0, auroc_unlearnt_cells=0.8)
    learnt, unlearnt = measured_metrics(facts.model_copy(update={"recipe": {"foreign": ["cells"]}}))
    assert learnt.data.endswith("against pictures of cells, others of which were learnt")
    assert unlearnt.data.endswith("against pictures of cells, none of which was learnt")


def _publish(objects: ObjectStore, folder: Path, value: float) -> None:
    manifest = Manifest(name="net", origin="imported", network=NetworkSpec(name="net"), dtype="float32")
    write_weights(folder, {"w": np.full((4,), value, np.float32)}, manifest)
    for name in ("net.safetensors", "net.json"):
        objects.under("weights").upload(name, folder / name)


def test_weights_reach_another_machine_and_follow_changes(s3_variables, monkeypatch, tmp_path):  # noqa: F811
    for name, value in s3_variables.items():
        monkeypatch.setenv(name, value)
    objects, one, two = ObjectStore.open("s3://fovea/models"), tmp_path / "one", tmp_path / "two"
    _publish(objects, one, 1.0)
    fetch_weights(objects, two)
    assert read_weights(two / "net.safetensors").arrays["w"][0] == 1.0
    stamp = (two / "net.safetensors").stat().st_mtime_ns
    fetch_weights(objects, two)
    assert (two / "net.safetensors").stat().st_mtime_ns == stamp, "nothing is fetched twice"
    _publish(objects, one, 2.0)
    fetch_weights(objects, two)
    assert read_weights(two / "net.safetensors").arrays["w"][0] == 2.0
    objects.under("weights").delete_all()
    fetch_weights(objects, two)
    assert not (two / "net.safetensors").exists(), "weights that were taken away are not served"
    assert json.loads((two / ".fetched.json").read_text()) == {}


def test_a_folder_is_its_own_copy_and_a_store_that_is_away_no_reason_for_demo_weights(tmp_path, monkeypatch):
    objects = ObjectStore.open(tmp_path.as_uri())
    fetch_weights(objects, tmp_path / "weights")
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")
    with pytest.raises(NotReady):
        fetch_weights(ObjectStore.open("s3://fovea"), tmp_path)
