"""Carries events from a thread to an async iterator, with back-pressure and cancellation. Knows no models."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import threading
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from concurrent.futures import Executor
from typing import Any, TypeVar

from shared.errors import DeadlineExceeded
from shared.registry import CallContext

__all__ = ["iterate_in_thread"]

Event = TypeVar("Event")

_END = object()


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
    inbox: asyncio.Queue[Any] = asyncio.Queue()
    room = threading.Semaphore(depth)

    def tell(event: Any) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody reads any more
            loop.call_soon_threadsafe(inbox.put_nowait, event)

    def work() -> None:
        try:
            with contextlib.closing(_closable(events())) as source:
                for event in source:
                    room.acquire()
                    run.check()
                    tell(event)
            tell(_END)
        except Exception as error:  # noqa: BLE001  # raised again in the reader
            tell(error)

    pool.submit((context or contextvars.copy_context()).run, work)
    ended = False
    try:
        while not ended:
            event = await _next(inbox, run)
            ended = event is _END or isinstance(event, Exception)
            if isinstance(event, Exception):
                raise event
            if not ended:
                room.release()
                yield event
    finally:
        if not ended:
            run.cancel()
            room.release()


async def _next(inbox: asyncio.Queue[Any], run: CallContext) -> Any:
    if run.deadline is None:
        return await inbox.get()
    try:
        async with asyncio.timeout(run.deadline - time.monotonic()):
            return await inbox.get()
    except TimeoutError as error:
        detail = "The deadline of the request passed before it was done."
        raise DeadlineExceeded(detail, hint="Allow more time.") from error


def _closable(events: Iterator[Event]) -> Any:
    """`events` with a `close`, as generators have."""
    return events if hasattr(events, "close") else (event for event in events)
