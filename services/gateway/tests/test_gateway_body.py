"""Bodies that are read once and sent again; what is too much, too slow or too foreign is answered clearly."""

import asyncio
import contextlib
import functools
from collections.abc import AsyncIterator
from typing import Any
from unittest.mock import AsyncMock
from urllib.parse import urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from fovea.errors import Cancelled, FoveaError, Malformed, QueueFull, TooLarge
from services.gateway.http import middleware
from services.gateway.policy.caller import SCOPES
from services.gateway.policy.memory_budget import MemoryBudget
from services.gateway.proxy.replayable_body import MAX_BUFFERED_BYTES, ReplayableBody
from services.gateway.tests.stage import ForgetfulQueue
from shared.asgi.body import BoundedBody, read_content_length
from tests.harness.openapi_fuzz import fuzz
from tests.harness.waiting import until


class Caller:
    """Sends pieces as an ASGI server would hand them on; after the last one it hangs up."""

    def __init__(self, pieces: list[bytes], *, hangs_up: bool = False) -> None:
        self.pieces, self.hangs_up, self.asked = list(pieces), hangs_up, 0

    async def __call__(self) -> dict[str, Any]:
        self.asked += 1
        await asyncio.sleep(0)
        if not self.pieces:
            return {"type": "http.disconnect"}
        piece = self.pieces.pop(0)
        return {"type": "http.request", "body": piece, "more_body": bool(self.pieces) or self.hangs_up}


def body(caller, *, length=None, limit=10**9, budget=None):
    bounded = BoundedBody(caller, limit=limit, pause_s=0.2)
    return ReplayableBody(bounded, length=length, budget=budget or MemoryBudget(10**9))


async def sent(payload: bytes | AsyncIterator[bytes]) -> bytes:
    return payload if isinstance(payload, bytes) else b"".join([piece async for piece in payload])


pieces = st.lists(st.binary(max_size=50), min_size=1, max_size=12)


@given(pieces=pieces, stops=st.lists(st.integers(0, 12), max_size=3))
def test_however_often_and_far_it_is_read_every_reading_is_whole_and_its_memory_is_given_back(pieces, stops):
    async def scenario() -> None:
        budget = MemoryBudget(10_000)
        read = body(Caller(pieces), budget=budget)
        await read.prefetch()
        for stop in stops:
            payload = read.payload()
            if not isinstance(payload, bytes):
                for _ in range(stop):
                    if await anext(payload, None) is None:
                        break
                await payload.aclose()  # type: ignore[attr-defined]
        assert await sent(read.payload()) == await sent(read.payload()) == b"".join(pieces)
        assert (await read.read_all(), budget.left) == (b"".join(pieces), 10_000 - sum(map(len, pieces)))
        for _ in range(2):
            read.release()
            assert budget.left == 10_000

    asyncio.run(scenario())


@given(pieces=pieces, limit=st.integers(0, 300), stated=st.booleans())
def test_no_more_than_the_limit_is_ever_kept(pieces, limit, stated):
    async def scenario() -> None:
        size = sum(map(len, pieces))
        read = body(Caller(pieces), length=size if stated else None, limit=limit)
        try:
            await read.prefetch()
            whole = await read.read_all()
        except TooLarge:
            assert (size > limit, read.error is None) == (True, False)
        else:
            assert (size <= limit, whole) == (True, b"".join(pieces))

    asyncio.run(scenario())


async def test_a_large_body_is_not_read_ahead_and_without_memory_it_flows_once_and_hanging_up_is_known():
    caller = Caller([b"a" * 100] * 5)
    read = body(caller, length=MAX_BUFFERED_BYTES + 1)
    await read.prefetch()
    assert (caller.asked, read.complete, await sent(read.payload())) == (1, False, b"a" * 500)
    read = body(Caller([b"aa"], hangs_up=True))
    await read.prefetch()
    with pytest.raises(Cancelled):
        await sent(read.payload())
    assert isinstance(read.error, Cancelled)
    read = body(Caller([b"aa", b"bb", b"cc"]), budget=MemoryBudget(3))
    await read.prefetch()
    assert (read.replayable, await sent(read.payload()), read.replayable) == (True, b"aabbcc", False)
    read = body(Caller([b"aa", b"bb"]), budget=MemoryBudget(3))
    with pytest.raises(QueueFull) as refused:
        await read.read_all()
    assert refused.value.retry_after == 1


@pytest.mark.parametrize(("headers", "outcome"), [
    ({}, 0), ({b"content-length": b"0"}, 0), ({b"content-length": b"100"}, 100),
    ({b"transfer-encoding": b"chunked"}, None), ({b"content-length": b"101"}, TooLarge),
    ({b"content-length": b"9" * 30}, TooLarge), ({b"content-length": b"-1"}, Malformed),
    ({b"content-length": b"1.5"}, Malformed), ({b"content-length": b""}, Malformed),
    ({b"content-length": "²".encode()}, Malformed),
])  # fmt: skip
def test_a_stated_length_is_checked_before_reading(headers, outcome):
    if isinstance(outcome, type) and issubclass(outcome, FoveaError):
        with pytest.raises(outcome):
            read_content_length(headers, 100)
    else:
        assert read_content_length(headers, 100) == outcome


def test_a_tenant_holds_half_of_what_the_others_leave_and_a_single_one_everything():
    budget = MemoryBudget(1000, shared=True)
    takes = ((300, "alice", True), (200, "alice", True), (1, "alice", False), (250, "carol", True), (1, "carol", False))
    assert all(budget.take(size, tenant) is is_given for size, tenant, is_given in (*takes, (125, "dave", True)))
    assert budget.left == 125
    budget.release(300, "alice")
    assert [budget.take(size, "alice") for size in (112, 2)] == [True, False], "half of 200 and 425"
    small = MemoryBudget(100, shared=True)  # whose first pieces may be larger than a share
    assert [small.take(*one) for one in ((50, "alice"), (50, "bob"), (1, "carol"))] == [True, True, False]
    small.release(50, "bob")
    assert small.left == 50
    single = MemoryBudget(100)
    assert [single.take(10, "local") for _ in range(11)] == [True] * 10 + [False]


async def test_bodies_that_one_tenant_holds_open_leave_another_room(served, ring):
    (_, alice), (_, bob) = ring.add("alice", ("infer", "jobs")), ring.add("bob", ("infer", "jobs"))
    scene = await served(auth="keys", max_body_bytes=100_000)
    budget = scene.app.state.gateway.proxy.budget
    address, writers = urlsplit(scene.url), []
    for _ in range(9):
        _, writer = await asyncio.open_connection(address.hostname, address.port)
        head = f"POST /v1/files HTTP/1.1\r\nHost: x\r\nx-api-key: {alice}\r\nContent-Length: 99000\r\n\r\n"
        writer.write(head.encode() + b"x" * 98_000)
        writers.append(writer)
    await until(lambda: budget.left <= 8 * 100_000 // 2 + 100_000)
    await asyncio.sleep(0.1)
    assert budget.left >= 8 * 100_000 // 2, "alice holds half at most"
    form = {"purpose": (None, "batch"), "file": ("a.jsonl", b"{}" * 40_000)}
    answer = await scene.client.post("/v1/files", files=form, headers={"x-api-key": bob})
    assert answer.status_code == 200
    for writer in writers:
        writer.close()
    await until(lambda: budget.left == 8 * 100_000)


async def test_an_answer_that_is_read_slowly_counts_as_held_memory_and_is_refused_where_there_is_none(served):
    scene = await served(max_body_bytes=2**24)
    budget, form = scene.app.state.gateway.proxy.budget, {"purpose": (None, "batch"), "file": ("a", b"x" * 12_000_000)}
    url = f"/v1/files/{(await scene.client.post('/v1/files', files=form)).json()['id']}/content"
    async with scene.client.stream("GET", url) as slow:
        await asyncio.sleep(0.1)
        assert budget.left == 2**27 - 12_000_000
        budget.take(budget.left - 1_000_000)
        assert "no memory left to hold" in (await scene.client.get(url)).text
        assert len(await slow.aread()) == 12_000_000
    await until(lambda: budget.left == 13_000_000)


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


async def test_a_live_stream_may_outgrow_the_limit_and_the_deadline_and_is_given_up_when_it_pauses(gateway, toy):
    left, scene = set(), await gateway(max_body_bytes=100_000, request_timeout_s=0.2)

    async def camera() -> AsyncIterator[bytes]:
        for _ in range(16):
            yield b"x" * 10_000
            await asyncio.sleep(0.025)  # twice the deadline together
            left.add(scene.app.state.gateway.proxy.budget.left)

    scene.announce((await toy()).url, routes=("/v1/camera", "/v1/echo"), endless=("/v1/camera",))
    answer = await scene.client.post("/v1/camera", content=camera())
    assert (answer.status_code, sum(map(int, answer.text.split()))) == (200, 160_000)
    assert left == {800_000}, "it takes no memory while it lasts"
    answer = await scene.client.post("/v1/camera", content=b"x" * 100_001)
    assert answer.status_code == 413  # a stated length is known before
    scene = await gateway(body_read_timeout_s=0.2)
    scene.announce((await toy()).url, routes=("/v1/camera",), endless=("/v1/camera",))
    answer = await raw(scene.url, head("/v1/camera", "Transfer-Encoding: chunked"), b"1\r\nx\r\n", wait_s=3)
    assert not answer.endswith(b"0\r\n\r\n"), "it was broken off, not ended"


async def test_a_caller_that_stops_sending_its_body_or_drips_it_beyond_the_deadline_is_given_up(served):
    scene = await served(body_read_timeout_s=0.3)
    for length in (100, 3_000_000):
        answer = await raw(scene.url, head("/v1/echo", f"Content-Length: {length}"), b"only this")
        assert (answer.startswith(b"HTTP/1.1 408 "), b"0.3 s" in answer) == (True, True)
        assert (scene.upstream.seen, scene.known.in_flight) == ([], 0)
    scene = await served(body_read_timeout_s=5, request_timeout_s=0.2)
    answer = await raw(scene.url, head("/v1/echo", "Content-Length: 100"), *[b"x", 0.1] * 6)
    assert answer.startswith(b"HTTP/1.1 408 ")


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


async def test_headers_without_end_are_refused_and_a_caller_that_stops_sending_them_is_hung_up_on(gateway):
    scene = await gateway()
    many = [b"X-A: " + b"a" * 10_000] + [b"a" * 10_000, 0.02] * 6
    start, host = b"GET /livez HTTP/1.1\r\n", b"Host: localhost\r\n"
    long = b"a" * 70_000
    for sent in ([start + host, *many], [b"GET /" + long + start[10:] + host], [start + host, b"X-A: " + long]):
        answer = await raw(scene.url, *sent, b"\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 400 ")
    answer = await raw(scene.url, head("/v1/echo", "Content-Length: 5", "Content-Length: 6", "Connection: close"))
    assert answer.startswith(b"HTTP/1.1 400 ")
    scene = await gateway(body_read_timeout_s=0.3)
    assert await raw(scene.url, b"POST /v1/echo HTTP/1.1\r\nHost: lo", wait_s=2) == b""
    assert await raw(scene.url, wait_s=2) == b""


async def test_what_is_not_there_is_told_in_the_familys_form_and_an_unknown_model_with_those_there_are(served):
    scene = await served()
    for path, place, told in (
        ("/v1/echo/../../etc", ("detail",), ""), ("/v1/segmnt", ("hint",), "`/docs` lists everything."),
        ("/v2/models/nobody/infer", ("error",), "pranet"), ("/v2/models/nobody", ("error",), ""),
        ("/v2/repository/models/nobody/load", ("error",), ""), ("/v1/models/nobody", ("error", "message"), ""),
        ("/v2/systemsharedmemory/status", ("error",), "Shared memory, trace and log settings"),
        ("/v2/model/pranet/infer", ("error",), "`/docs`"), ("/v2/logging", ("error",), "Shared memory"),
        ("/v1/chat/completions", ("error", "message"), ""), ("/tokenize", ("error", "message"), ""),
        ("/v1/moderations", ("error", "type"), "not_found_error"), ("/v1/moderations", ("error", "code"), "not_found"),
    ):  # fmt: skip
        answer = await scene.client.post(path, content=b"{}")
        found = functools.reduce(lambda found, key: found[key], place, answer.json())
        assert (answer.status_code, told in found) == (404, True), path
        if "error" not in place:
            assert answer.headers["content-type"] == "application/problem+json"
            assert answer.json()["request_id"] == answer.headers["x-request-id"]
    assert len(answer.json()["error"]["message"]) < 100


async def test_nothing_is_unknown_before_all_are_announced_wrong_methods_name_the_right_and_faults_tell_nothing(
    gateway, monkeypatch
):
    scene = await gateway(enabled_services="medical-seg")
    answer = await scene.client.post("/v1/segment", content=b"x")
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "2")
    scene = await gateway()
    answer = await scene.client.put("/v1/jobs/1")
    assert (answer.status_code, answer.json()["code"]) == (405, "method_not_allowed")
    assert (answer.headers["allow"], "DELETE, GET" in answer.json()["detail"]) == ("DELETE, GET", True)
    assert (await scene.client.put("/")).headers["allow"] == "GET, HEAD"

    scene = await gateway()
    broken = AsyncMock(side_effect=RuntimeError("the secret path /home/someone"))
    monkeypatch.setattr(scene.app.state.gateway.models, "list_models", broken)
    with capture_logs() as lines:
        answer = await scene.client.get("/v1/models", headers={"x-request-id": "r-1"})
    failed = next(line for line in lines if line["event"] == "failed")
    assert (failed["request_id"], str(failed["exc_info"])) == ("r-1", "the secret path /home/someone")
    assert (answer.status_code, answer.json()["error"]["type"]) == (500, "server_error")
    assert "secret" not in answer.text


async def test_pages_of_other_sites_can_neither_use_nor_read_a_gateway_without_keys(served):
    scene = await served()
    for headers, status in (
        ({"host": "evil.example"}, 403), ({"host": "evil.example:8080"}, 403), ({"host": "localhost:1"}, 200),
        ({"host": "[::1]:1"}, 200), ({"host": "fovea.localhost"}, 200), ({"host": "127.0.0.1", "origin": "null"}, 403),
        ({"host": "127.0.0.1", "origin": "http://evil.example"}, 403),
        ({"host": "127.0.0.1:9", "origin": "http://127.0.0.1:9"}, 200),
    ):  # fmt: skip
        assert (await scene.client.post("/v1/echo", headers=headers)).status_code == status, headers
    answer = await (await served()).client.get("/v1/models", headers={"origin": "http://evil.example"})
    assert not [name for name in answer.headers if name.startswith("access-control")]


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
