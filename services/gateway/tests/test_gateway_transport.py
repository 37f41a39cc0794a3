"""HTTP's corners, byte by byte: an upstream that is a script, and callers that are sockets."""

import asyncio
import contextlib
import gzip
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.harness.scripted import Serve, scripted


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


@pytest.mark.parametrize(
    ("method", "sent", "status", "body", "header"),
    [
        ("DELETE", b"HTTP/1.1 204 No Content\r\nx-a: 1\r\n\r\n", 204, b"", ("x-a", "1")),
        ("HEAD", b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nbody", 200, b"", ("content-length", "4")),
        ("POST", b"HTTP/1.1 200 OK\r\n\r\nall of it", 200, b"all of it", ("transfer-encoding", "chunked")),
    ],
)
async def test_an_answer_has_the_length_that_it_has(before, method, sent, status, body, header):
    scene = await before(answering(sent))
    answer = await scene.client.request(method, "/v1/sessions/1" if method == "DELETE" else "/v1/echo")
    assert (answer.status_code, answer.content, answer.headers[header[0]]) == (status, body, header[1])
    assert ("transfer-encoding" in answer.headers) is (method == "POST")


async def test_packed_answers_are_not_unpacked_on_the_way(before):
    packed = gzip.compress(b"mask" * 1000)
    start = b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: %d\r\n\r\n" % len(packed)
    scene = await before(answering(start + packed))
    async with scene.client.stream("POST", "/v1/echo") as answer:
        raw = b"".join([piece async for piece in answer.aiter_raw()])
    assert raw == packed
    assert answer.headers["content-encoding"] == "gzip"


async def test_a_begun_answer_that_breaks_off_is_not_passed_for_whole(before):
    scene = await before(answering(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n"))
    async with connected(scene.url) as (reader, writer):
        writer.write(head(0))
        answer = await asyncio.wait_for(reader.read(), 5)
    assert b"hello" in answer
    assert not answer.endswith(b"0\r\n\r\n")


@pytest.mark.parametrize(
    "garbage", [b"not http at all\r\n\r\n", b"HTTP/1.1 200 OK\r\ncontent-length: x\r\n\r\n", b"\x00" * 100]
)
async def test_an_upstream_that_speaks_no_http_is_not_ready(before, garbage):
    scene = await before(answering(garbage))
    answer = await scene.client.post("/v1/echo", content=b"x")
    assert (answer.status_code, answer.json()["code"]) == (503, "not_ready")


async def test_connections_to_replicas_are_used_again(before):
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


async def test_a_connection_that_the_replica_closed_meanwhile_costs_no_request(before):
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

    scene = await before(serve)
    async with connected(scene.url) as (reader, writer), asyncio.timeout(5):
        writer.write(head(5_000_000) + b"x" * 100_000)
        assert (await request(reader))[1] == b"why"


async def test_a_caller_that_hangs_up_while_sending_stops_the_upload(before):
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


async def test_a_fast_replica_waits_for_a_slow_reader(before):
    sent = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        await request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 200000000\r\n\r\n")
        for _ in range(2000):
            writer.write(b"x" * 100_000)
            await writer.drain()
            sent += 100_000

    scene = await before(serve)
    async with connected(scene.url) as (_, writer):
        writer.write(head(0))
        await asyncio.sleep(0.7)
    assert 0 < sent < 50_000_000
