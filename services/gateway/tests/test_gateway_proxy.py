"""The proxy over real sockets: what crosses it and what does not, byte by byte, and the spans of a request."""

import asyncio
import contextlib
import gzip
import json
import random
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import urlsplit

import httpx2
import pytest

from services.gateway.app import build_gateway
from services.gateway.server import create_server
from services.gateway.tests.conftest import Scene, listening, shut_down
from shared.tests.recorded_spans import is_child, recorded_spans  # noqa: F401  # a fixture
from tests.harness.scripted import Serve, scripted


async def test_a_request_reaches_the_replica_without_headers_that_stay_behind_and_its_answer_comes_back(served):
    scene = await served()
    answer = await scene.client.post("/v1/echo?x=%2F1&y", content=b"\x00picture", headers={"content-type": "image/png"})
    assert (answer.status_code, answer.content, answer.headers["content-type"]) == (200, b"\x00picture", "image/png")
    seen = scene.upstream.seen[0]
    wanted = {"method": "POST", "path": "/v1/echo", "query": "x=%2F1&y", "body": b"\x00picture"}
    assert {name: seen[name] for name in wanted} == wanted
    large = random.Random(0).randbytes(9 * 2**20 + 17)
    assert (await scene.client.post("/v1/echo", content=large)).content == large
    assert scene.upstream.seen[1]["headers"]["content-length"] == str(len(large))
    sent = {
        "Connection": "x-only-here", "X-Only-Here": "1", "Authorization": "Bearer secret", "X-Api-Key": "secret",
        "X-Fovea-Tenant": "somebody else", "TE": "trailers", "Accept": "image/png",
        "Traceparent": "00-" + "a" * 32 + "-" + "b" * 16 + "-01", "X-Request-Id": "mine-1",
    }  # fmt: skip
    answer = await scene.client.post("/v1/echo", content=b"x", headers=sent)
    got = scene.upstream.seen[-1]["headers"]
    assert not {"x-only-here", "authorization", "x-api-key", "te"} & got.keys()
    assert (got["x-fovea-tenant"], got["accept"]) == ("local", "image/png")
    assert got["x-request-id"] == answer.headers["x-request-id"] == "mine-1"
    trace, parent = got["traceparent"].split("-")[1:3]
    assert (trace, parent == "b" * 16) == ("a" * 32, False)
    assert 119_000 < int(got["x-fovea-deadline-ms"]) <= 120_000
    assert (answer.headers["x-toy"], answer.headers["x-content-type-options"]) == ("yes", "nosniff")
    assert len(answer.headers.get_list("x-content-type-options")) == 1
    scene.upstream.status = 422  # status and errors of a replica pass unchanged
    answer = await scene.client.post("/v1/echo", content=b"{}", headers={"content-type": "application/problem+json"})
    assert (answer.status_code, answer.content) == (422, b"{}")


@pytest.mark.parametrize(("settings", "headers", "gap_s", "told"), [
    ({"request_timeout_s": 0.2}, {}, 0.1, None), ({"request_timeout_s": 0.2}, {}, 2.0, "FOVEA_REQUEST_TIMEOUT_S"),
    ({"stream_timeout_s": 0.3}, {}, 0.1, "FOVEA_STREAM_TIMEOUT_S"),
    ({}, {"x-fovea-deadline-ms": "300"}, 0.1, "the caller's own deadline"),
])  # fmt: skip
async def test_a_live_stream_is_not_cut(served, monkeypatch, settings, headers, gap_s, told):
    for module in ("http.request_context", "proxy.proxy"):
        monkeypatch.setattr(f"services.gateway.{module}.DEADLINE_GRACE_S", 0.1)
    scene = await served(fields={"chunks": 10, "gap_s": gap_s}, **settings)
    answer = await scene.client.post("/v1/stream", headers=headers)
    *pieces, last = answer.text.strip().split("\n\n")
    assert answer.status_code == 200
    if told is None:
        assert (len(pieces), last) == (9, "data: 9")
    else:
        assert told in json.loads(last.removeprefix("data: "))["error"]["detail"]


@pytest.mark.parametrize("path", ["/v1/stream", "/v1/slow"])
async def test_a_caller_that_leaves_in_a_stream_or_before_the_answer_stops_the_replica(served, path):
    scene = await served(fields={"chunks": 1000, "gap_s": 0.02})
    with contextlib.suppress(httpx2.ReadTimeout):
        async with scene.client.stream("POST", path, content=b"x", timeout=0.3) as answer:
            await anext(answer.aiter_bytes())
            assert path == "/v1/stream"
    await asyncio.wait_for(scene.upstream.gone.wait(), 3)
    await asyncio.sleep(0.05)
    assert scene.known.in_flight == 0


async def test_a_deadline_of_the_caller_is_passed_on_and_kept_and_refused_where_it_is_no_number(served, toy):
    scene = await served()
    for sent, longest, stream in ((None, 120_000, 0), ("700", 700, 700), ("500000", 120_000, 500_000)):
        await scene.client.post("/v1/echo", content=b"x", headers={"x-fovea-deadline-ms": sent} if sent else {})
        got = scene.upstream.seen[-1]["headers"]
        assert 0.7 * longest < int(got["x-fovea-deadline-ms"]) <= longest
        assert stream - 1_000 < int(got["x-fovea-stream-ms"]) <= stream
    late = await scene.client.post("/v1/slow", headers={"x-fovea-deadline-ms": "50"})
    assert (late.status_code, late.json()["code"]) == (504, "deadline_exceeded")
    await asyncio.wait_for(scene.upstream.gone.wait(), 3)
    for text in ("0", "-5", "soon", "1e3", "9" * 40, "²".encode()):
        answer = await scene.client.post("/v1/echo", headers={"x-fovea-deadline-ms": text})
        assert (answer.status_code, answer.json()["field"]) == (422, "x-fovea-deadline-ms"), text
    first, second = scene.upstream, await toy(name="b")
    scene.announce(second.url, name="b")
    first.seen.clear()
    assert (await scene.client.post("/v2/repository/models/pranet/load", content=b"{}")).status_code == 200
    assert len(first.seen) == len(second.seen) == 1, "loading reaches every replica"


async def test_requests_are_counted_by_their_route_head_is_as_get_and_what_is_read_here_is_not_compressed(served):
    scene = await served()
    await scene.client.post("/v1/echo")
    await scene.client.post("/v2/models/pranet/infer")
    await scene.client.get("/nobody/knows/this")
    scene.announce(scene.upstream.url, service="llm", routes=("/v1/lora-adapters",), models=("smollm",))
    scene.upstream.status = 404
    assert "pranet, smollm" in (await scene.client.get("/v1/models/nobody-made-this")).text, "those of all services"
    scene.upstream.status = 200
    text = (await scene.client.get("/metrics")).text
    assert 'fovea_requests_total{model="",route="/v1/echo",service="gateway",status="200"}' in text
    assert ('route="/v2/models/{name}/infer",service="gateway"' in text, "nobody" in text) == (True, False)
    for path in ("/livez", "/v1/models", "/v1/echo", "/openapi.json"):
        answer = await scene.client.head(path)
        assert (answer.status_code, answer.content) == (200, b""), path
    assert (await scene.client.head("/nowhere")).status_code == 404
    answer = await scene.client.post("/v1/admin/keys", content=b"x", headers={"content-encoding": "gzip"})
    assert (answer.status_code, answer.json()["code"]) == (415, "unsupported_media")


@pytest.mark.parametrize("coding", [b"gzip, chunked", b"gzip\r\ntransfer-encoding: chunked"])
@pytest.mark.parametrize("path", [b"/v1/echo", b"/v1/jobs"])
async def test_a_body_that_is_compressed_for_the_connection_alone_is_refused(served, path, coding):
    scene = await served()
    async with connected(scene.url) as (reader, writer):
        writer.write(b"POST %b HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: %b\r\n\r\n" % (path, coding))
        writer.write(b"1\r\nx\r\n0\r\n\r\n")
        answer = await asyncio.wait_for(reader.read(), 5)
    assert (answer.split(b" ")[1], b"transfer coding" in answer, scene.upstream.seen) == (b"415", True, [])


@pytest.mark.parametrize(("sent", "got"), [("Größe".encode(), "Größe"), ("Größe".encode("latin-1"), "Größe")])
async def test_a_header_that_is_not_ascii_reaches_the_replica_as_utf_8(served, sent, got):
    scene = await served()
    await scene.client.post("/v1/echo", headers={b"x-name": sent, b"idempotency-key": sent})
    for name in ("x-name", "idempotency-key"):
        assert scene.upstream.seen[0]["headers"][name].encode("latin-1").decode() == got


async def test_a_stream_that_outlives_the_grace_of_a_stopping_gateway_ends_with_an_error_event(gateway_settings, toy):
    app = build_gateway(gateway_settings)
    server = create_server(app, gateway_settings)
    async with listening(server) as url, httpx2.AsyncClient(base_url=url) as client:
        Scene(app, url, client).announce((await toy(chunks=500)).url)
        async with client.stream("POST", "/v1/stream") as answer:
            stopping = asyncio.create_task(shut_down(server))
            *_, last = [line async for line in answer.aiter_lines() if line]
        await stopping
    assert json.loads(last.removeprefix("data: "))["error"]["code"] == "not_ready"


TRACE, CALLER = "a" * 32, "b" * 16


async def test_key_model_turn_and_replica_are_spans_of_one_request(gateway, toy, ring, recorded_spans):  # noqa: F811
    _, secret = ring.add("alice", ("infer",))
    one, two = await toy(), await toy()
    scene = await gateway(auth="keys")
    scene.announce(one.url, service="one", name="r1", models=("pranet",), routes=("/v1/echo",))
    scene.announce(two.url, service="two", name="r2", models=("yolo",), routes=("/v1/echo",))
    headers = {"authorization": f"Bearer {secret}", "traceparent": f"00-{TRACE}-{CALLER}-01"}
    answer = await scene.client.post("/v1/echo", json={"model": "yolo"}, headers=headers)
    assert answer.status_code == 200
    spans = {span.kind.name: span for span in recorded_spans.named("POST /v1/echo")}
    server, sent = spans["SERVER"], spans["CLIENT"]
    assert f"{server.parent.span_id:016x}" == CALLER
    for span in (sent, *map(recorded_spans.one, ("authenticate", "route", "queue"))):
        assert is_child(span, server)
    assert server.attributes["fovea.tenant"] == "alice"
    assert (sent.attributes["fovea.service"], sent.attributes["fovea.replica"]) == ("two", "r2")
    assert recorded_spans.one("route").attributes["fovea.service"] == "two"
    assert two.seen[0]["headers"]["traceparent"] == f"00-{TRACE}-{sent.context.span_id:016x}-01"


async def test_each_replica_that_is_tried_has_a_span(gateway, toy, recorded_spans):  # noqa: F811
    scene = await gateway()
    busy, ready = await toy(status=503, name="busy"), await toy()
    scene.announce(busy.url, name="r1")
    scene.announce(ready.url, name="r2")
    tries = []
    while len(tries) < 64 and not any("http.request.resend_count" in s.attributes for s in tries):  # drawn by chance
        assert (await scene.client.post("/v1/echo", content=b"x")).status_code == 200
        tries = [s for s in recorded_spans.all() if s.kind.name == "CLIENT"]
    again = {s.attributes["fovea.replica"] for s in tries if "http.request.resend_count" in s.attributes}
    assert again == {"r2"}
    lost = [s for s in tries if s.attributes["fovea.replica"] == "r1"]
    assert all(s.attributes["error.type"] == "UpstreamLost" for s in lost)


async def test_a_caller_that_does_not_want_a_trace_gets_none(served, recorded_spans):  # noqa: F811
    scene = await served()
    await scene.client.post("/v1/echo", content=b"x", headers={"traceparent": f"00-{TRACE}-{CALLER}-00"})
    assert recorded_spans.all() == ()
    sent = scene.upstream.seen[0]["headers"]["traceparent"].split("-")
    assert (sent[1], sent[3]) == (TRACE, "00")


def answering(answer: bytes, *, close: bool = True) -> Serve:
    """Read one request after another, and answer each with the same bytes."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await request(reader)
            writer.write(answer)
            await writer.drain()
            if close:
                return

    return serve


async def request(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    start = await reader.readuntil(b"\r\n\r\n")
    length = [line.partition(b":")[2] for line in start.lower().split(b"\r\n") if line.startswith(b"content-length:")]
    return start, await reader.readexactly(int(length[0]) if length else 0)


@contextlib.asynccontextmanager
async def connected(url: str) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    address = urlsplit(url)
    reader, writer = await asyncio.open_connection(address.hostname, address.port)
    try:
        yield reader, writer
    finally:
        writer.close()


@pytest.fixture
async def before(gateway):
    """Starts a gateway before one upstream that is a script, `scene.replica`."""
    async with contextlib.AsyncExitStack() as stack:

        async def start(serve: Serve) -> Any:
            scene = await gateway()
            scene.replica = scene.announce(await stack.enter_async_context(scripted(serve)))
            return scene

        yield start


def head(length: int) -> bytes:
    return b"POST /v1/echo HTTP/1.1\r\nhost: localhost\r\ncontent-length: %d\r\n\r\n" % length


@pytest.mark.parametrize(("method", "sent", "status", "body", "header"), [
    ("DELETE", b"HTTP/1.1 204 No Content\r\nx-a: 1\r\n\r\n", 204, b"", ("x-a", "1")),
    ("HEAD", b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nbody", 200, b"", ("content-length", "4")),
    ("POST", b"HTTP/1.1 200 OK\r\n\r\nall of it", 200, b"all of it", ("transfer-encoding", "chunked")),
])  # fmt: skip
async def test_an_answer_has_the_length_that_it_has(before, method, sent, status, body, header):
    scene = await before(answering(sent))
    answer = await scene.client.request(method, "/v1/sessions/1" if method == "DELETE" else "/v1/echo")
    assert (answer.status_code, answer.content, answer.headers[header[0]]) == (status, body, header[1])
    assert ("transfer-encoding" in answer.headers) is (method == "POST")


async def test_packed_answers_are_not_unpacked_and_one_that_breaks_off_is_not_passed_for_whole(before):
    packed = gzip.compress(b"mask" * 1000)
    start = b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: %d\r\n\r\n" % len(packed)
    scene = await before(answering(start + packed))
    async with scene.client.stream("POST", "/v1/echo") as answer:
        raw = b"".join([piece async for piece in answer.aiter_raw()])
    assert (raw, answer.headers["content-encoding"]) == (packed, "gzip")
    scene = await before(answering(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n"))
    async with connected(scene.url) as (reader, writer):
        writer.write(head(0))
        answer = await asyncio.wait_for(reader.read(), 5)
    assert (b"hello" in answer, answer.endswith(b"0\r\n\r\n")) == (True, False)


async def test_an_upstream_that_speaks_no_http_is_not_ready(before):
    for garbage in (b"not http at all\r\n\r\n", b"HTTP/1.1 200 OK\r\ncontent-length: x\r\n\r\n", b"\x00" * 100):
        answer = await (await before(answering(garbage))).client.post("/v1/echo", content=b"x")
        assert (answer.status_code, answer.json()["code"]) == (503, "not_ready")


async def test_connections_to_replicas_are_used_again_and_one_that_was_closed_costs_no_request(before):
    count = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal count
        count += 1
        await answering(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok", close=False)(reader, writer)

    scene = await before(serve)
    for _ in range(10):
        assert (await scene.client.post("/v1/echo", content=b"x")).content == b"ok"
    await scene.app.state.gateway.client.stop()
    assert count == 1

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for _ in range(2):
            await request(reader)
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
        await request(reader)  # the third request of a connection is read and never answered

    scene = await before(serve)
    answers = [await scene.client.post("/v1/echo", content=b"x") for _ in range(9)]
    assert {a.status_code for a in answers} == {200}


async def test_an_answer_may_come_before_the_body_is_through(before):
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 415 No\r\ncontent-length: 3\r\nconnection: close\r\n\r\nwhy")
        await writer.drain()
        await reader.read(2**16)

    async with connected((await before(serve)).url) as (reader, writer), asyncio.timeout(5):
        writer.write(head(5_000_000) + b"x" * 100_000)
        assert (await request(reader))[1] == b"why"


async def test_a_caller_that_hangs_up_while_sending_stops_the_upload_and_a_slow_one_the_replica(before):
    over = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await request(reader)
        finally:
            over.set()

    scene = await before(serve)
    async with connected(scene.url) as (_, writer):
        writer.write(head(5_000_000) + b"x" * 200_000)
        await asyncio.sleep(0.2)
        assert scene.replica.in_flight == 1
    await asyncio.wait_for(over.wait(), 3)
    await asyncio.sleep(0.05)
    assert (scene.replica.in_flight, scene.app.state.gateway.proxy.budget.left) == (0, 8 * 64 * 2**20)
    sent = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        await request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 200000000\r\n\r\n")
        for _ in range(2000):
            writer.write(b"x" * 100_000)
            await writer.drain()
            sent += 100_000

    async with connected((await before(serve)).url) as (_, writer):
        writer.write(head(0))
        await asyncio.sleep(0.7)
    assert 0 < sent < 50_000_000
