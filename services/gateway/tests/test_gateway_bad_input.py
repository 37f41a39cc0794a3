"""Too much, too slow, too foreign, not there: a clear answer in the form of the route's family, and never a fault."""

import asyncio
import contextlib
import functools
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import urlsplit

import pytest
from structlog.testing import capture_logs

from services.gateway.http import middleware
from services.gateway.policy.caller import SCOPES
from services.gateway.tests.stage import ForgetfulQueue
from tests.harness.openapi_fuzz import fuzz


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """A refused body is read for half a second, where the product takes two."""
    monkeypatch.setattr(middleware, "DRAIN_BODY_S", 0.5)


async def raw(url: str, *parts: bytes | float, wait_s: float = 3) -> bytes:
    """A server's answer to bytes; numbers between them are pauses."""
    address = urlsplit(url)
    reader, writer = await asyncio.open_connection(address.hostname, address.port)
    with contextlib.suppress(ConnectionError):
        for part in parts:
            if isinstance(part, bytes):
                writer.write(part)
                await writer.drain()
            else:
                await asyncio.sleep(part)
    try:
        async with asyncio.timeout(wait_s):
            return await reader.read()
    finally:
        writer.close()


def head(path: str, *lines: str) -> bytes:
    return "\r\n".join([f"POST {path} HTTP/1.1", "Host: localhost", *lines, "", ""]).encode()


async def test_a_body_that_is_too_large_is_refused_before_it_is_read_also_to_a_caller_that_sends_on(served):
    scene = await served(max_body_bytes=100_000)
    answer = await raw(scene.url, head("/v1/echo", "Content-Length: 100001", "Expect: 100-continue"))
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert all(words in answer for words in (b"connection: close", b"100,001", b"100,000"))
    assert scene.upstream.seen == []
    answer = await scene.client.post("/v1/echo", content=b"x" * 5_000_000)
    assert (answer.status_code, answer.json()["code"]) == (413, "too_large")
    assert (await scene.client.post("/v1/echo", content=b"x")).status_code == 200


async def test_a_live_stream_may_outgrow_the_limit_and_the_deadline(gateway, toy):
    async def camera() -> AsyncIterator[bytes]:
        for _ in range(16):
            yield b"x" * 10_000
            await asyncio.sleep(0.025)  # twice the deadline together

    scene = await gateway(max_body_bytes=100_000, request_timeout_s=0.2)
    scene.announce((await toy()).url, routes=("/v1/camera", "/v1/echo"), endless=("/v1/camera",))
    answer = await scene.client.post("/v1/camera", content=camera())
    assert answer.status_code == 200
    assert sum(map(int, answer.text.split())) == 160_000
    assert scene.app.state.gateway.proxy.budget.left == 800_000
    answer = await scene.client.post("/v1/camera", content=b"x" * 100_001)
    assert answer.status_code == 413  # a stated length is known before


async def test_a_live_stream_that_pauses_is_given_up(gateway, toy):
    scene = await gateway(body_read_timeout_s=0.2)
    scene.announce((await toy()).url, routes=("/v1/camera",), endless=("/v1/camera",))
    answer = await raw(scene.url, head("/v1/camera", "Transfer-Encoding: chunked"), b"1\r\nx\r\n", wait_s=3)
    assert not answer.endswith(b"0\r\n\r\n"), "it was broken off, not ended"


@pytest.mark.parametrize("length", [100, 3_000_000])
async def test_a_caller_that_stops_sending_its_body_is_given_up(served, length):
    scene = await served(body_read_timeout_s=0.3)
    answer = await raw(scene.url, head("/v1/echo", f"Content-Length: {length}"), b"only this")
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"0.3 s" in answer
    assert (scene.upstream.seen, scene.known.in_flight) == ([], 0)


async def test_a_caller_that_drips_its_body_is_given_up_at_the_deadline(served):
    scene = await served(body_read_timeout_s=5, request_timeout_s=0.2)
    drops = [b"x", 0.1] * 12
    answer = await raw(scene.url, head("/v1/echo", "Content-Length: 100"), *drops)
    assert answer.startswith(b"HTTP/1.1 408 ")


async def test_a_caller_that_stops_sending_its_headers_is_hung_up_on(gateway):
    scene = await gateway(body_read_timeout_s=0.3)
    assert await raw(scene.url, b"POST /v1/echo HTTP/1.1\r\nHost: lo", wait_s=2) == b""
    assert await raw(scene.url, wait_s=2) == b""


async def test_a_caller_that_does_not_read_is_let_go_at_the_deadline(served):
    scene = await served(fields={"chunks": 10**6, "gap_s": 0, "padding": b"x" * 60_000}, request_timeout_s=0.3)
    address = urlsplit(scene.url)
    _, writer = await asyncio.open_connection(address.hostname, address.port, limit=1)
    writer.write(head("/v1/stream", "Content-Length: 0"))
    await asyncio.sleep(0.2)
    assert scene.known.in_flight == 1
    await asyncio.wait_for(scene.upstream.gone.wait(), 5)
    assert scene.known.in_flight == 0
    writer.close()


async def test_headers_without_end_are_refused(gateway):
    scene = await gateway()
    many = [b"X-A: " + b"a" * 10_000] + [b"a" * 10_000, 0.02] * 6
    start, host = b"GET /livez HTTP/1.1\r\n", b"Host: localhost\r\n"
    long = b"a" * 70_000
    for sent in ([start + host, *many], [b"GET /" + long + start[10:] + host], [start + host, b"X-A: " + long]):
        answer = await raw(scene.url, *sent, b"\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 400 ")
    answer = await raw(scene.url, head("/v1/echo", "Content-Length: 5", "Content-Length: 6", "Connection: close"))
    assert answer.startswith(b"HTTP/1.1 400 ")


async def test_what_is_not_there_is_told_in_the_familys_form(served):
    scene = await served()
    for path, place in {
        "/v1/echo/../../etc": ("detail",), "/v1/segmnt": ("detail",), "/v2/models/nobody/infer": ("error",),
        "/v2/models/nobody": ("error",), "/v2/repository/models/nobody/load": ("error",),
        **dict.fromkeys(("/v1/models/nobody", "/v1/chat/completions", "/tokenize"), ("error", "message")),
    }.items():  # fmt: skip
        answer = await scene.client.post(path, content=b"{}")
        told = functools.reduce(lambda found, key: found[key], place, answer.json())
        assert (answer.status_code, type(told)) == (404, str), path
        if place == ("detail",):
            assert answer.headers["content-type"] == "application/problem+json"
            assert answer.json()["request_id"] == answer.headers["x-request-id"]


async def test_an_unknown_path_is_refused_in_a_line_an_unknown_model_lists_what_there_is_and_no_other_site_may_read(
    served,
):
    scene = await served()
    assert (await scene.client.post("/v1/segmnt")).json()["hint"] == "`/docs` lists everything."
    error = (await scene.client.post("/v1/moderations")).json()["error"]
    assert (error["type"], error["code"]) == ("not_found_error", "not_found")
    assert len(error["message"]) < 100
    assert "pranet" in (await scene.client.post("/v2/models/prenet/infer")).json()["error"]
    answer = await scene.client.get("/v1/models", headers={"origin": "http://evil.example"})
    assert not [name for name in answer.headers if name.startswith("access-control")]


async def test_nothing_is_unknown_before_everybody_has_announced_himself(gateway):
    scene = await gateway(enabled_services="medical-seg")
    answer = await scene.client.post("/v1/segment", content=b"x")
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "2")


async def test_a_wrong_method_says_which_are_right(gateway):
    scene = await gateway()
    answer = await scene.client.put("/v1/jobs/1")
    assert (answer.status_code, answer.json()["code"]) == (405, "method_not_allowed")
    assert answer.headers["allow"] == "DELETE, GET"
    assert "DELETE, GET" in answer.json()["detail"]
    assert (await scene.client.put("/")).headers["allow"] == "GET, HEAD"


async def test_pages_of_other_sites_can_not_use_a_gateway_without_keys(served):
    scene = await served()
    for headers, status in (
        ({"host": "evil.example"}, 403), ({"host": "evil.example:8080"}, 403), ({"host": "localhost:1"}, 200),
        ({"host": "[::1]:1"}, 200), ({"host": "fovea.localhost"}, 200), ({"host": "127.0.0.1", "origin": "null"}, 403),
        ({"host": "127.0.0.1", "origin": "http://evil.example"}, 403),
        ({"host": "127.0.0.1:9", "origin": "http://127.0.0.1:9"}, 200),
    ):  # fmt: skip
        assert (await scene.client.post("/v1/echo", headers=headers)).status_code == status, headers


async def test_a_failure_of_ours_is_a_problem_without_a_traceback(gateway, monkeypatch):
    async def broken(*_: object) -> list[Any]:
        raise RuntimeError("the secret path /home/someone")

    scene = await gateway()
    monkeypatch.setattr(scene.app.state.gateway.models, "list_models", broken)
    with capture_logs() as lines:
        answer = await scene.client.get("/v1/models", headers={"x-request-id": "r-1"})
    assert answer.status_code == 500
    failed = next(line for line in lines if line["event"] == "failed")
    assert (failed["request_id"], str(failed["exc_info"])) == ("r-1", "the secret path /home/someone")
    assert answer.json()["error"]["type"] == "server_error"
    assert "secret" not in answer.text


async def test_no_request_that_the_document_allows_makes_the_gateway_fail(gateway, ring):
    _, key = ring.add("ops", SCOPES, rate_per_minute=1_000_000)
    scene = await gateway(queue=ForgetfulQueue(None), auth="keys")
    document = scene.app.openapi()
    assert len(document["paths"]) > 15

    def is_meant(operation):
        """DELETE would revoke the key that is used here."""
        return operation.method.upper() != "DELETE" and not operation.path.endswith("/events")

    # Not ready is the truth here: there is no service.
    more = {"wanted": is_meant, "allowed": {503}, "headers": {"x-api-key": key}}
    await asyncio.to_thread(fuzz, document, scene.url, 5, **more)
