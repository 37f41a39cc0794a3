"""Events cross from thread to loop in order, no faster than they are read, and stop when nobody reads."""

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from shared.errors import DeadlineExceeded
from shared.registry import CallContext
from shared.serving.thread_stream import iterate_in_thread
from tests.harness.waiting import until


@pytest.fixture
def pool():
    with ThreadPoolExecutor(2) as made:
        yield made


async def test_events_come_in_order_and_end(pool):
    run = CallContext()
    assert [event async for event in iterate_in_thread(lambda: range(100), run, pool)] == list(range(100))
    assert not run.cancelled


async def test_thread_is_never_more_than_the_depth_ahead(pool):
    made = []

    def source():
        for number in range(50):
            made.append(number)
            yield number

    read = 0
    async for _ in iterate_in_thread(source, CallContext(), pool, depth=4):
        read += 1
        await asyncio.sleep(0.001)
        assert len(made) <= read + 4 + 1
    assert read == 50


async def test_source_is_closed_when_the_reader_goes_away(pool):
    closed, run = threading.Event(), CallContext()

    def source():
        try:
            while True:
                yield 1
        finally:
            closed.set()

    events = iterate_in_thread(source, run, pool, depth=1)
    await anext(events)
    await events.aclose()
    assert run.cancelled
    await until(closed.is_set)


async def test_error_of_the_source_reaches_the_reader_after_what_came_before(pool):
    def source():
        yield 1
        raise ZeroDivisionError

    events = iterate_in_thread(source, CallContext(), pool)
    assert await anext(events) == 1
    with pytest.raises(ZeroDivisionError):
        await anext(events)


async def test_silence_ends_at_the_deadline(pool):
    over = threading.Event()

    def source():
        over.wait(5)
        yield 1

    with pytest.raises(DeadlineExceeded):
        await anext(iterate_in_thread(source, CallContext(deadline=time.monotonic() + 0.02), pool))
    over.set()
