"""First light asks each service one question and keeps the answers; `fovea up` says in one line what keeps it down."""

import json
import socket
import subprocess
import sys
from types import SimpleNamespace

import httpx2
import pytest
import typer
from typer.testing import CliRunner

from fovea.errors import NotFound
from shared.serving.tests import toys
from shared.serving.tests.toys import PNG
from shared.serving.up import launch
from shared.serving.up.smoke_test import _failure, run_smoke_test
from shared.settings import Settings, environment
from tests.harness.scripted import scripted


async def lights(url, out, **more):
    return [light async for light in run_smoke_test(url, out, **more)]


async def test_no_proxy_is_asked_for_this_machine_and_sees_its_key(start_replica, tmp_path, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    made = await start_replica({"toy/eye": toys.Eye})
    (result,) = await lights(made.http, tmp_path)
    assert result.is_ok, result.summary


async def test_answer_and_picture_are_kept_under_the_service(start_replica, tmp_path):
    made = await start_replica({"toy/eye": toys.Eye})
    (result,) = await lights(made.http, tmp_path)
    assert (result.service, result.model, result.is_ok) == ("toy", "toy/eye", True)
    assert result.files == (tmp_path / "toy" / "toy-eye.json", tmp_path / "toy" / "toy-eye.png")
    assert json.loads(result.files[0].read_text())["threshold"] == 0.25
    assert result.files[1].read_bytes() == PNG
    assert result.summary == "bytes 70, threshold 0.25, invert False"


async def test_one_model_of_a_service_is_asked_and_a_ready_one_rather_than_a_failed(start_replica, tmp_path):
    made = await start_replica({"toy/broken": toys.Broken, "toy/echo": toys.Echo, "toy/eye": toys.Eye})
    (result,) = await lights(made.http, tmp_path)
    assert (result.model, result.summary) == ("toy/echo", "text hello, together 1")
    assert await lights(made.http, tmp_path, services={"other"}) == []
    assert [light.is_ok for light in await lights(made.http, tmp_path, services={"toy"})] == [True]


async def test_service_whose_model_fails_is_told_with_its_sentence(start_replica, tmp_path):
    made = await start_replica({"toy/broken": toys.Broken})
    (result,) = await lights(made.http, tmp_path)
    assert not result.is_ok
    assert "not available" in result.summary
    assert not list(tmp_path.iterdir())


async def test_answer_that_cannot_be_kept_is_told(start_replica, tmp_path):
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


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b'{"detail": "No."}', "No."), (b'{"error": {"message": "No."}}', "No."), (b'{"error": "No."}', "No."),
        (b"<html>", "500"),
    ],
)  # fmt: skip
def test_failure_is_told_in_every_error_form(body, words):
    request = httpx2.Request("GET", "http://x/")
    error = httpx2.HTTPStatusError("500", request=request, response=httpx2.Response(500, content=body, request=request))
    assert _failure(error) == words


def test_up_on_a_port_in_use_says_so_and_ends(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        env = environment(FOVEA_HTTP_PORT=str(taken.getsockname()[1]), FOVEA_DATA_DIR=str(tmp_path))
        code = "import typer; from shared.serving.up.launch import up; typer.run(up)"
        ended = subprocess.run(
            [sys.executable, "-c", code, "--once"], env=env, capture_output=True, text=True, timeout=60, check=False
        )
    assert ended.returncode == 1
    (line,) = ended.stdout.splitlines()
    assert "Set FOVEA_HTTP_PORT to another port." in line
    assert "Traceback" not in ended.stderr


def test_up_refuses_a_service_that_there_is_not(tmp_path):
    config = Settings(data_dir=tmp_path, enabled_services="medical-seg,detecton")
    with pytest.raises(NotFound, match="'detecton'") as refused:
        launch._Product(config)._check()
    assert "FOVEA_ENABLED_SERVICES may name vision-restoration, medical-seg, detection" in refused.value.hint


def test_up_takes_a_model_and_adapters_from_disk(tmp_path, monkeypatch):
    started = []

    class Product:
        def __init__(self, config):
            started.append((config.llm_model, config.llm_adapters))

        async def run(self, *, once):
            return 0

    monkeypatch.setattr(launch, "_Product", Product)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model.gguf").touch()
    app = typer.Typer()
    app.command()(launch.up)
    for words in (["--lm", "model.gguf", "--adapters", "."], ["--lm", "smollm2"]):
        assert CliRunner().invoke(app, words).exit_code == 0
    assert started == [(str(tmp_path / "model.gguf"), tmp_path), ("smollm2", None)]
    for words in (["--lm", "./gone"], ["--adapters", "gone"]):
        assert isinstance(CliRunner().invoke(app, words).exception, NotFound)
    assert len(started) == 2


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
    assert added.pop("gateway") is None
    assert set(added.values()) == {"0"}
