"""Thread stream: iterates on a thread and yields in an event loop, with back-pressure and cancellation."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import threading
import time
from collections.abc import AsyncGenerator, Callable, Generator, Iterator
from concurrent.futures import Executor
from typing import TypeVar

from shared.errors import DeadlineExceeded
from shared.registry import CallContext

Event = TypeVar("Event")
Item = TypeVar("Item")


class _End:
    """The iteration is over."""


async def iterate_in_thread(
    events: Callable[[], Iterator[Event]],
    run: CallContext,
    pool: Executor,
    depth: int = 32,
    context: contextvars.Context | None = None,
) -> AsyncGenerator[Event, None]:
    """Iterate `events()` on a thread of `pool` and yield what comes, no more than `depth` events ahead of the reader.

    Closing the iterator early cancels `run`; the thread then ends at its next event or its next `run.check()`. It works
    in `context`, or in a copy of that of the first reader.

    Raises:
        DeadlineExceeded: Nothing came before the run's deadline.
        Exception: Whatever the iteration raises.
    """
    loop = asyncio.get_running_loop()
    queue: asyncio.Queue[Event | Exception | _End] = asyncio.Queue()
    slots = threading.Semaphore(depth)

    def put(event: Event | Exception | _End) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody reads any more
            loop.call_soon_threadsafe(queue.put_nowait, event)

    def work() -> None:
        try:
            with contextlib.closing(_generate(events())) as source:
                for event in source:
                    slots.acquire()
                    run.check()
                    put(event)
            put(_End())
        except Exception as error:  # noqa: BLE001  # raised again in the reader
            put(error)

    pool.submit((context or contextvars.copy_context()).run, work)
    is_over = False
    try:
        while True:
            event = await _next(queue, run)
            is_over = isinstance(event, Exception | _End)
            if isinstance(event, Exception):
                raise event
            if isinstance(event, _End):
                return
            slots.release()
            yield event
    finally:
        if not is_over:
            run.cancel()
            slots.release()


async def _next(queue: asyncio.Queue[Item], run: CallContext) -> Item:
    if run.deadline is None:
        return await queue.get()
    try:
        async with asyncio.timeout(run.deadline - time.monotonic()):
            return await queue.get()
    except TimeoutError as error:
        detail = "The deadline of the request passed before it was done."
        raise DeadlineExceeded(detail, hint="Allow more time.") from error


def _generate(events: Iterator[Event]) -> Generator[Event, None, None]:
    """`events` as a generator, whose `close` closes them where they can be closed."""
    yield from events
