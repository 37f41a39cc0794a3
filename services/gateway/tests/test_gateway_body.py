"""A body that is read once and sent as often as it must be: limits, memory, replay."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fovea.errors import Cancelled, FoveaError, Malformed, QueueFull, TooLarge
from services.gateway.policy.memory_budget import MemoryBudget
from services.gateway.proxy.replayable_body import MAX_BUFFERED_BYTES, ReplayableBody
from shared.asgi.body import BoundedBody, SlowBody, read_content_length


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
