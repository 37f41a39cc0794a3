"""The doctor says what is there and what is not, and its exit code says whether the product can run."""

import json
import socket
from importlib.metadata import EntryPoint

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from fovea.errors import NotReady
from shared.registry import discovery
from shared.registry.weights import Manifest, NetworkSpec, write_weights
from shared.serving.device_placement import choose_device
from shared.serving.up import doctor as room
from shared.serving.up.doctor import Diagnosis, doctor, examine
from shared.settings import Settings, settings


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """A machine with free ports, no models and no weights, so that nothing heavy is looked at."""
    monkeypatch.setattr(discovery, "skipped_modules", dict)
    monkeypatch.setattr(discovery, "servables", lambda service: {"eye": object} if service == "medical-seg" else {})
    monkeypatch.setattr(discovery, "data_folders", lambda *_: [])

    def make(**fields):
        with socket.socket() as one, socket.socket() as two:
            one.bind(("127.0.0.1", 0))
            two.bind(("127.0.0.1", 0))
            free = {"http_port": one.getsockname()[1], "grpc_port": two.getsockname()[1]}
        return Settings(**{"data_dir": tmp_path, "redis_url": None, **free, **fields})

    return make


def found(chosen, topic):
    return [finding for finding in examine(chosen) if finding.topic == topic]


def test_a_good_machine_can_run_and_one_with_a_port_in_use_can_not(machine):
    topics = {finding.topic for finding in examine(machine())}
    assert topics == {
        "python", "memory", "ports", "redis", "objects", "ray", "compilers", "gpus", "engine", "models", "kernels",
    }  # fmt: skip
    assert room._can_run(examine(machine()))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        chosen = machine(grpc_port=taken.getsockname()[1])
        (finding,) = found(chosen, "ports")
        assert finding.verdict == "bad"
        assert "FOVEA_GRPC_PORT" in finding.detail
        assert not room._can_run(examine(chosen))


def test_a_given_redis_is_named_without_its_password_and_engines_with_what_they_lack(machine):
    (finding,) = found(machine(redis_url="redis://:secret@127.0.0.1:9/0"), "redis")
    assert ("secret" in finding.detail, finding.verdict) == (False, "bad"), "nothing runs without it"
    told = [finding.detail for finding in found(machine(), "engine")]
    assert any(line.startswith("tensorrt ") for line in told)
    assert "triton no server (FOVEA_TRITON_URL is not set)" in told
    assert "triton box:8001" in [finding.detail for finding in found(machine(triton_url="box:8001"), "engine")]


def test_rooms_that_are_left_out_or_broken_are_findings_and_hide_nothing(machine, monkeypatch):
    monkeypatch.setattr(discovery, "skipped_modules", lambda: {"services.detection.models.x": "shapely"})
    assert found(machine(), "rooms") == [
        Diagnosis("rooms", "note", "services.detection.models.x left out: needs shapely")
    ]

    typos = [EntryPoint(f"{name}.mine", "mine.models", discovery.MODELS) for name in ("detecton", "detection")]
    real = room.plugins.entries
    monkeypatch.setattr(
        room.plugins, "entries", lambda *of: (*real(*of), *(typos if of == (discovery.MODELS,) else []))
    )
    no_service, no_package = found(machine(), "rooms")[1:]
    assert "its entry point 'detecton.mine' begins with no service" in no_service.detail
    assert "there is no package 'mine.models'" in no_package.detail

    def broken():
        raise SyntaxError("in a model")

    monkeypatch.setattr(discovery, "skipped_modules", broken)
    assert found(machine(), "rooms") == [Diagnosis("rooms", "bad", "SyntaxError: in a model")]
    assert found(machine(), "models") == [Diagnosis("models", "good", "medical-seg: eye")]


def test_weights_that_are_not_what_their_manifest_says_are_bad_and_absent_ones_noted_with_their_package(
    machine, tmp_path, monkeypatch
):
    manifest = Manifest(name="eye", origin="imported", network=NetworkSpec(name="eye"))
    write_weights(tmp_path / "weights", {"w": np.ones(3, np.float32)}, manifest)
    (good,) = found(machine(), "weights")
    assert good.verdict == "good"
    (tmp_path / "weights" / "eye.safetensors").write_bytes(b"replaced")
    (bad,) = found(machine(), "weights")
    assert (bad.verdict, "eye.safetensors" in bad.detail) == ("bad", True)
    licences = {"eye": "Apache-2.0", "ear": "Apache-2.0", "nose": "LicenseRef-Kvasir-SEG-Research-Only"}
    for name, licence in licences.items():
        facts = Manifest(name=name, origin="trained", network=NetworkSpec(name=name), licence=licence)
        write_weights(tmp_path, {"w": np.ones(3)}, facts)
        (tmp_path / f"{name}.safetensors").unlink()
    monkeypatch.setattr(discovery, "data_folders", lambda service, _: [tmp_path] if service == "detection" else [])
    assert [(one.verdict, one.detail) for one in found(machine(data_dir=tmp_path / "data"), "weights")] == [
        ("note", "no weights of ear, eye. Try: pip install fovea-weights"),
        ("note", "no weights of nose. Try: pip install fovea-weights-kvasir-seg"),
    ]


def test_json_is_for_machines_and_lines_for_people(machine, monkeypatch):
    chosen = machine()
    monkeypatch.setattr(room, "settings", lambda: chosen)
    app = typer.Typer()
    app.command()(doctor)
    answer = CliRunner().invoke(app, ["--json"])
    assert answer.exit_code == 0
    assert json.loads(answer.stdout)["ok"] is True
    lines = CliRunner().invoke(app, []).stdout.splitlines()
    assert lines[0].startswith("✓ python")
    assert settings is not room.settings


def test_device_is_as_told_and_otherwise_what_is_there(monkeypatch):
    place = "shared.serving.device_placement"
    monkeypatch.setattr(f"{place}.list_gpus", list)
    assert choose_device("auto") == "cpu"
    assert choose_device("cpu") == "cpu"
    with pytest.raises(NotReady, match="There is no CUDA device: FOVEA_DEVICE is cuda") as caught:
        choose_device("cuda")
    assert "--gpus all" in caught.value.hint
    monkeypatch.setattr(f"{place}.list_gpus", lambda: ["one", "two"])
    monkeypatch.setattr(f"{place}._library_sees_gpu", lambda: True)
    assert choose_device("cuda:1") == "cuda:1"
    assert choose_device("auto") == "cuda"
    with pytest.raises(NotReady, match="There is no CUDA device 2"):
        choose_device("cuda:2")
    monkeypatch.setattr(f"{place}._library_sees_gpu", lambda: False)
    with pytest.raises(NotReady, match="No library here can use cuda"):
        choose_device("cuda")
