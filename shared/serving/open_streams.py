"""Answers that are streamed: how many are open, and each event by its deadline. Knows no models and no transport."""

import asyncio
import contextlib
import math
import time
from collections.abc import AsyncGenerator, Callable

from pydantic import BaseModel

from fovea.errors import QueueFull
from shared import telemetry
from shared.registry import CallContext
from shared.retry_after import PlaceEstimate
from shared.serving.http.errors import to_safe_error

Events = AsyncGenerator[BaseModel, None]


class OpenStreams:
    """The open streams of a host, `most` of them. Belongs to one event loop."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._runs: list[CallContext] = []
        self._places = PlaceEstimate()
        self._none = asyncio.Event()
        self._none.set()

    def __len__(self) -> int:
        return len(self._runs)

    async def finish(self, seconds: float) -> None:
        """Wait until none is open, for up to so many seconds, then cancel those that are left."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._none.wait()
        for run in self._runs:
            run.cancel()

    async def read(self, service: str, name: str, begin: Callable[[], Events], run: CallContext) -> Events:
        """Yield the events of a stream; closing the iterator cancels the run.

        Raises QueueFull: the limit of open streams is reached.
        """
        if len(self._runs) >= self._most:
            detail = f"{len(self._runs)} streams are open, which is the limit."
            raise QueueFull(detail, retry_after=self._places.send_away())
        self._runs.append(run)
        self._places.enter(run)
        self._none.clear()
        events, is_over = begin(), False
        try:
            while not is_over:
                with telemetry.bind(service=service, model=name):
                    event = await _next(events, run)
                is_over = event is None
                if event is not None:
                    run.extend()
                    yield event
        except Exception as error:
            is_over = True
            raise to_safe_error(error, f"The model {name}") from error
        finally:
            if not is_over:
                run.cancel()
            await events.aclose()
            self._runs.remove(run)
            self._places.leave(run)
            if not self._runs:
                self._none.set()


async def _next(events: Events, run: CallContext) -> BaseModel | None:
    """The next event; None at the end.

    Raises DeadlineExceeded: none came before the run's deadline, which tokens that show nothing yet may have moved.
    """
    loop = asyncio.get_running_loop()
    timer: asyncio.TimerHandle | None = None

    def check_deadline() -> None:
        nonlocal timer
        left = math.inf if run.deadline is None else run.deadline - time.monotonic()
        if left <= 0:
            limit.reschedule(loop.time())
        elif left < math.inf:
            timer = loop.call_later(left, check_deadline)

    try:
        async with asyncio.timeout(None) as limit:
            check_deadline()
            return await anext(events, None)
    except TimeoutError as error:
        raise run.build_late() from error
    finally:
        if timer is not None:
            timer.cancel()
