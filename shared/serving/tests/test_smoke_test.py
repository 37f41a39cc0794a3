"""The doctor says what is there; `fovea up` what keeps it down; first light asks each service one question."""

import asyncio
import json
import signal
import socket
from importlib.metadata import EntryPoint
from types import SimpleNamespace
from unittest.mock import AsyncMock, Mock

import httpx2
import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from fovea.errors import NotFound, NotReady
from shared.registry import discovery
from shared.registry.weights import Manifest, NetworkSpec, write_weights
from shared.serving.device_placement import choose_device
from shared.serving.tests import toys
from shared.serving.tests.toys import PNG
from shared.serving.up import doctor as room
from shared.serving.up import launch
from shared.serving.up.doctor import Diagnosis, doctor, examine
from shared.serving.up.smoke_test import _failure, run_smoke_test
from shared.settings import Settings
from tests.harness.scripted import scripted
from tests.harness.waiting import free_port


async def lights(url, out, **more):
    return [light async for light in run_smoke_test(url, out, **more)]


async def test_answer_and_picture_of_one_ready_model_are_kept_and_no_proxy_is_asked_for_this_machine(
    start_replica, tmp_path, monkeypatch
):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    made = await start_replica({"toy/eye": toys.Eye})
    (result,) = await lights(made.http, tmp_path)
    assert (result.service, result.model, result.is_ok) == ("toy", "toy/eye", True)
    assert result.files == (tmp_path / "toy" / "toy-eye.json", tmp_path / "toy" / "toy-eye.png")
    assert (json.loads(result.files[0].read_text())["threshold"], result.files[1].read_bytes()) == (0.25, PNG)
    assert result.summary == "bytes 70, threshold 0.25, invert False"
    made = await start_replica({"toy/broken": toys.Broken, "toy/echo": toys.Echo, "toy/eye": toys.Eye})
    (result,) = await lights(made.http, tmp_path)
    assert (result.model, result.summary) == ("toy/echo", "text hello, together 1")
    assert await lights(made.http, tmp_path, services={"other"}) == []
    assert [light.is_ok for light in await lights(made.http, tmp_path, services={"toy"})] == [True]


async def test_a_model_that_fails_and_an_answer_that_cannot_be_kept_are_told(start_replica, tmp_path):
    made = await start_replica({"toy/broken": toys.Broken})
    (result,) = await lights(made.http, tmp_path)
    assert (result.is_ok, "not available" in result.summary, list(tmp_path.iterdir())) == (False, True, [])
    made = await start_replica({"toy/echo": toys.Echo})
    (tmp_path / "out").touch()
    (result,) = await lights(made.http, tmp_path / "out")
    assert (result.is_ok, "Not a directory" in result.summary) == (False, True)


async def test_key_is_sent_where_there_is_one(tmp_path):
    seen = []

    async def refuse(reader, writer):
        seen.append((await reader.readuntil(b"\r\n\r\n")).decode().lower())
        writer.write(b"HTTP/1.1 401 Unauthorized\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")

    async with scripted(refuse) as url:
        for key in (None, "fovea_secret"):
            (result,) = await lights(url, tmp_path, key=key, services={"toy"})
            assert (result.service, result.is_ok, "401" in result.summary) == ("toy", False, True)
    assert ["authorization: bearer fovea_secret" in head for head in seen] == [False, True]


@pytest.mark.parametrize(("body", "words"), [
    (b'{"detail": "No."}', "No."), (b'{"error": {"message": "No."}}', "No."), (b'{"error": "No."}', "No."),
    (b"<html>", "The gateway answered 500 Internal Server Error."),
])  # fmt: skip
def test_failure_is_told_in_every_error_form(body, words):
    request = httpx2.Request("GET", "http://x/")
    error = httpx2.HTTPStatusError("500", request=request, response=httpx2.Response(500, content=body, request=request))
    assert _failure(error) == words


def invoke(command, *words):
    app = typer.Typer()
    app.command()(command)
    return CliRunner().invoke(app, words)


def test_up_on_a_port_in_use_says_so_and_ends(tmp_path, monkeypatch):
    monkeypatch.setattr(launch.telemetry, "configure_logs", lambda *_: None)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        chosen = Settings(data_dir=tmp_path, redis_url=None, http_port=taken.getsockname()[1])
        monkeypatch.setattr(launch, "settings", lambda: chosen)
        ended = invoke(launch.up, "--once")
    assert ended.exit_code == 1
    (line,) = ended.stdout.splitlines()
    assert "Set FOVEA_HTTP_PORT to another port." in line


def test_up_refuses_a_service_that_there_is_not_and_takes_a_model_and_adapters_from_disk(tmp_path, monkeypatch):
    same = Settings(data_dir=tmp_path, host="::1", http_port=8, grpc_port=8)
    assert launch._Product(same)._gateway == "http://[::1]:8"
    with pytest.raises(NotReady, match="are both 8"):
        launch._Product(same)._check()
    with pytest.raises(NotReady, match="is open to others: set FOVEA_AUTH=keys"):
        launch._Product(Settings(data_dir=tmp_path, host="0.0.0.0"))._check()
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    assert asyncio.run(launch._Product(same).run(once=True)) == 1
    assert signal.signal(signal.SIGHUP, before) is signal.SIG_IGN, "it outlives its terminal under nohup"
    config = Settings(data_dir=tmp_path, enabled_services="medical-seg,detecton")
    with pytest.raises(NotFound, match="'detecton'") as refused:
        launch._Product(config)._check()
    assert "FOVEA_ENABLED_SERVICES may name vision-restoration, medical-seg, detection" in refused.value.hint
    run = AsyncMock(return_value=0)
    monkeypatch.setattr(launch, "_Product", made := Mock(return_value=SimpleNamespace(run=run)))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model.gguf").touch()
    for words in (["--lm", "model.gguf", "--adapters", "."], ["--lm", "smollm2"]):
        assert invoke(launch.up, *words).exit_code == 0
    started = [(config.llm_model, config.llm_adapters) for (config,) in (call.args for call in made.call_args_list)]
    assert started == [(str(tmp_path / "model.gguf"), tmp_path), ("smollm2", None)]
    for words in (["--lm", "./gone"], ["--adapters", "gone"]):
        assert isinstance(invoke(launch.up, *words).exception, NotFound)
    assert made.call_count == 2


@pytest.mark.parametrize("placement", ["processes", "ray"])
async def test_only_the_gateway_of_up_has_the_port_of_metrics_which_all_would_want(tmp_path, placement):
    added = {}

    async def add(name, *_arguments, **env):
        added[name] = env.get("FOVEA_METRICS_PORT")
        if name == "gateway":
            raise launch.ProcessDied("that is enough")

    config = Settings(data_dir=tmp_path, enabled_services="medical-seg,llm-longctx", placement=placement)
    with pytest.raises(launch.ProcessDied):
        await launch._Product(config)._work(None, SimpleNamespace(add=add), once=True)
    assert (added.pop("gateway"), set(added.values())) == (None, {"0"})


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """A machine with free ports, no models and no weights, so that nothing heavy is looked at."""
    monkeypatch.setattr(discovery, "skipped_modules", dict)
    monkeypatch.setattr(discovery, "servables", lambda service: {"eye": object} if service == "medical-seg" else {})
    monkeypatch.setattr(discovery, "data_folders", lambda *_: [])
    ports = {"http_port": free_port(), "grpc_port": free_port()}
    return lambda **fields: Settings(**{"data_dir": tmp_path, "redis_url": None, **ports, **fields})


def found(chosen, topic):
    return [finding for finding in examine(chosen) if finding.topic == topic]


def test_a_good_machine_can_run_and_one_with_a_port_in_use_can_not(machine):
    findings = examine(machine())
    topics = "python memory ports redis objects ray compilers gpus engine models kernels"
    assert {finding.topic for finding in findings} == {*topics.split()}
    assert room._can_run(findings)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        chosen = machine(grpc_port=taken.getsockname()[1])
        (finding,) = found(chosen, "ports")
        assert (finding.verdict, "FOVEA_GRPC_PORT" in finding.detail) == ("bad", True)
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
    told = "services.detection.models.x left out: needs shapely"
    assert found(machine(), "rooms") == [Diagnosis("rooms", "note", told)]

    typos = [EntryPoint(f"{name}.mine", "mine.models", discovery.MODELS) for name in ("detecton", "detection")]
    real, entries = room.plugins.entries, {(discovery.MODELS,): typos}
    monkeypatch.setattr(room.plugins, "entries", lambda *of: (*real(*of), *entries.get(of, [])))
    monkeypatch.setattr(room, "entry_points", lambda: SimpleNamespace(groups={"fovea.model", "fovea.models", "other"}))
    no_service, no_package, no_group = (finding.detail for finding in found(machine(), "rooms")[1:])
    assert no_group.startswith("entry points of 'fovea.model' left out: the groups are fovea.adapters")
    assert "its entry point 'detecton.mine' begins with no service" in no_service
    assert "there is no package 'mine.models'" in no_package
    monkeypatch.setattr(discovery, "skipped_modules", Mock(side_effect=SyntaxError("in a model")))
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
    answer = invoke(doctor, "--json")
    assert (answer.exit_code, json.loads(answer.stdout)["ok"]) == (0, True)
    assert invoke(doctor).stdout.startswith("✓ python")


def test_device_is_as_told_and_otherwise_what_is_there(monkeypatch):
    place = "shared.serving.device_placement"
    monkeypatch.setattr(f"{place}.list_gpus", list)
    assert [choose_device(wish) for wish in ("auto", "cpu")] == ["cpu"] * 2
    with pytest.raises(NotReady, match="There is no CUDA device: FOVEA_DEVICE is cuda") as caught:
        choose_device("cuda")
    assert "--gpus all" in caught.value.hint
    monkeypatch.setattr(f"{place}.list_gpus", lambda: ["one", "two"])
    monkeypatch.setattr(f"{place}._library_sees_gpu", lambda: True)
    assert [choose_device(wish) for wish in ("auto", "cuda:1")] == ["cuda", "cuda:1"]
    with pytest.raises(NotReady, match="There is no CUDA device 2"):
        choose_device("cuda:2")
    monkeypatch.setattr(f"{place}._library_sees_gpu", lambda: False)
    with pytest.raises(NotReady, match="No library here can use cuda"):
        choose_device("cuda")
