"""A task of `plugins/example` that nothing here knows is routed, listed and shown by its record and schema alone."""

import asyncio
import importlib
import json
import socket
from pathlib import Path

import httpx2
import pytest
from fastapi import APIRouter, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send
from typer.testing import CliRunner

import fovea
from fovea.api.replica import ENDLESS
from fovea.cli.main import app as command
from services.gateway.tests.stage import fronted
from shared.serving.build_app import build
from shared.settings import Settings

TASK = "count-words"
LIMIT = 100_000

router = APIRouter()


class Echo(Response):
    """Sends each chunk of the body back while the next one arrives."""

    def __init__(self, request: Request) -> None:
        super().__init__(media_type="text/plain")
        del self.headers["content-length"]
        self.request = request

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        async for chunk in self.request.stream():
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body", "body": b""})


@router.post(f"/v1/{TASK}/stream", openapi_extra=dict(ENDLESS), response_class=Response)
async def stream(request: Request) -> Response:
    return Echo(request)


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gateway")
    settings = Settings(data_dir=folder, redis_url=None, max_body_bytes=LIMIT)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(Path(__file__).parents[2] / "plugins/example")
        kind = importlib.import_module("fovea_example.models.word_counter").WordCounter
        app = build("cells", routers=(router,), servables={kind.card.name: kind}, settings=settings)
    with fronted(app, "cells", folder, max_body_bytes=LIMIT) as (address, _, _):
        yield address


def test_the_endless_route_answers_while_its_body_arrives_and_has_no_limit(url):
    host, _, port = url.removeprefix("http://").partition(":")
    piece, sent, read = b"z" * 60_000, 0, b""
    with socket.create_connection((host, int(port)), timeout=20) as caller:
        head = f"POST /v1/{TASK}/stream HTTP/1.1\r\nhost: {host}\r\ntransfer-encoding: chunked\r\n\r\n"
        caller.sendall(head.encode())
        for _ in range(4):  # more than the limit in all, and each answered before the next is sent
            caller.sendall(b"%x\r\n%b\r\n" % (len(piece), piece))
            sent += len(piece)
            while read.count(b"z") < sent:
                read += caller.recv(65536)
        caller.sendall(b"0\r\n\r\n")
    assert read.startswith(b"HTTP/1.1 200")
    assert sent > 2 * LIMIT


def test_the_console_shows_it_with_a_title_a_form_and_the_generic_result_view(url):
    assert "Count words" in httpx2.get(url).text
    assert f"/console/run/{TASK}?model=word-counter" in httpx2.get(f"{url}/console/models").text
    page = httpx2.get(f"{url}/console/run/{TASK}").text
    assert "<h1>Count words</h1>" in page
    assert 'name="text"' in page
    assert "<fovea-result" in page
    assert f'data-path="/v1/{TASK}"' in page
    card = httpx2.get(f"{url}/console/models/word-counter").text
    assert "It is split at white space." in card
    assert f"curl {url}/v1/{TASK}" in card


async def test_the_command_and_both_clients_run_it(url):
    def run(*words: str) -> str:
        result = CliRunner().invoke(command, [*words, "--url", url], catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return result.output

    def ask() -> None:
        assert TASK in run("models")
        assert "--text" in run("models", "word-counter")
        assert json.loads(run("run", TASK, "--text", "a b a", "--json"))["words"] == {"a": 2, "b": 1}
        with fovea.Client(url) as client:
            assert client.run(TASK, {"text": "a"})["words"] == {"a": 1}

    await asyncio.to_thread(ask)
    async with fovea.AsyncClient(url) as client:
        assert (await client.run(TASK, {"text": "a b"}))["words"] == {"a": 1, "b": 1}
