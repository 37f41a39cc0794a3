"""Progress of a job: the latest state is written to Redis a few times a second, however often it changes.

A worker writes that of its own attempts. A replica that serves a job for a worker elsewhere writes it under the job id
and attempt that come with the request; Redis ignores an attempt that has lost its job.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Final

from shared.jobs.redis_client import UNUSABLE, RedisClient, cancel_tasks

# Shortest time between two writes of a job's progress; faster updates replace what was not written yet.
_INTERVAL_S: Final = 0.2


class LatestProgress:
    """The latest progress of one attempt. Belongs to one event loop."""

    def __init__(self) -> None:
        self._latest: tuple[float, str | None] = (0.0, None)
        self._changed = asyncio.Event()

    def set(self, fraction: float, note: str | None) -> None:
        """Replace the progress; the fraction is bounded to 0..1."""
        self._latest = (min(max(fraction, 0.0), 1.0), note)
        self._changed.set()

    async def publish(self, write: Callable[[float, str | None], Awaitable[None]]) -> None:
        """Write the latest progress whenever there is one, until cancelled."""
        while True:
            await self._changed.wait()
            self._changed.clear()
            with contextlib.suppress(*UNUSABLE):
                await write(*self._latest)
            await asyncio.sleep(_INTERVAL_S)


class RemoteReport:
    """The progress of an attempt whose worker is elsewhere, published until `stop`. Belongs to one event loop."""

    def __init__(self, redis: RedisClient, job_id: str, attempt: str) -> None:
        self._redis, self._job = redis, (job_id, attempt)
        self._loop = asyncio.get_running_loop()
        self._latest = LatestProgress()
        self._publishing = self._loop.create_task(self._latest.publish(self._write))

    def __call__(self, fraction: float, note: str | None) -> None:
        """Replace the progress; any thread may call this, and it neither waits nor fails."""
        with contextlib.suppress(RuntimeError):  # the loop is closed: this process is going
            self._loop.call_soon_threadsafe(self._latest.set, fraction, note)

    async def stop(self) -> None:
        """Publish no more."""
        await cancel_tasks(self._publishing)

    async def _write(self, fraction: float, note: str | None) -> None:
        await self._redis.run_script("progress", *self._job, f"{fraction:.4f}", note or "")
