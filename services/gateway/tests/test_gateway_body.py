"""A body that is read once and sent as often as it must be: limits, replay, and the memory that tenants share."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fovea.errors import Cancelled, FoveaError, Malformed, QueueFull, TooLarge
from services.gateway.policy.memory_budget import MemoryBudget
from services.gateway.proxy.replayable_body import MAX_BUFFERED_BYTES, ReplayableBody
from shared.asgi.body import BoundedBody, SlowBody, read_content_length
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
def test_however_often_and_far_it_is_read_every_reading_is_whole(pieces, stops):
    async def scenario() -> None:
        read = body(Caller(pieces))
        await read.prefetch()
        for stop in stops:
            payload = read.payload()
            if not isinstance(payload, bytes):
                for _ in range(stop):
                    if await anext(payload, None) is None:
                        break
                await payload.aclose()  # type: ignore[attr-defined]
        assert await sent(read.payload()) == b"".join(pieces)
        assert await sent(read.payload()) == b"".join(pieces)
        assert await read.read_all() == b"".join(pieces)

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
            assert size > limit
            assert read.error is not None
        else:
            assert size <= limit
            assert whole == b"".join(pieces)

    asyncio.run(scenario())


@given(pieces=pieces)
def test_memory_is_given_back(pieces):
    async def scenario() -> None:
        budget = MemoryBudget(10_000)
        read = body(Caller(pieces), budget=budget)
        await read.read_all()
        assert budget.left == 10_000 - sum(map(len, pieces))
        read.release()
        read.release()
        assert budget.left == 10_000

    asyncio.run(scenario())


async def test_a_large_body_is_not_read_ahead():
    caller = Caller([b"a" * 100] * 5)
    read = body(caller, length=MAX_BUFFERED_BYTES + 1)
    await read.prefetch()
    assert (caller.asked, read.complete) == (1, False)
    assert await sent(read.payload()) == b"a" * 500


async def test_without_memory_a_body_flows_once_and_is_refused_for_now_where_it_must_be_whole():
    read = body(Caller([b"aa", b"bb", b"cc"]), budget=MemoryBudget(3))
    await read.prefetch()
    assert read.replayable
    assert await sent(read.payload()) == b"aabbcc"
    assert not read.replayable
    read = body(Caller([b"aa", b"bb"]), budget=MemoryBudget(3))
    with pytest.raises(QueueFull) as refused:
        await read.read_all()
    assert refused.value.retry_after == 1


async def test_a_caller_that_hangs_up_or_pauses_in_the_middle_is_known():
    read = body(Caller([b"aa"], hangs_up=True))
    await read.prefetch()
    with pytest.raises(Cancelled):
        await sent(read.payload())
    assert isinstance(read.error, Cancelled)

    async def silent() -> dict[str, Any]:
        await asyncio.sleep(10)
        return {}

    read = body(silent)
    with pytest.raises(SlowBody, match=r"0\.2 s"):
        await read.prefetch()
    assert read.error is not None


@pytest.mark.parametrize(
    ("headers", "outcome"),
    [
        ({}, 0), ({b"content-length": b"0"}, 0), ({b"content-length": b"100"}, 100),
        ({b"transfer-encoding": b"chunked"}, None), ({b"content-length": b"101"}, TooLarge),
        ({b"content-length": b"9" * 30}, TooLarge), ({b"content-length": b"-1"}, Malformed),
        ({b"content-length": b"1.5"}, Malformed), ({b"content-length": b""}, Malformed),
        ({b"content-length": "²".encode()}, Malformed),
    ],
)  # fmt: skip
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
    assert budget.take(112, "alice"), "half of 200 and 425"
    assert not budget.take(2, "alice")
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
