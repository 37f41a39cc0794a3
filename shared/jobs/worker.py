"""The worker loop: takes jobs, runs them through a `Handler`, keeps their leases and hands in what became of them.

An outage of Redis stops the taking, not the running: answers wait until Redis is back. Knows leases, retries and
draining; knows nothing about what a job does.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from random import uniform
from typing import Final

from shared.errors import Cancelled, FoveaError, NotReady
from shared.jobs import codec
from shared.jobs.consumer import Delivery, NothingToDo, QueueConsumer
from shared.jobs.queue import Handler, Result
from shared.jobs.redis_client import cancel_tasks, retry_until_connected
from shared.settings import Settings
from shared.telemetry import bind, log

__all__ = ["JobTicket", "JobWorker"]

_PROGRESS_S: Final = 0.2
"""Shortest time between two writes of a job's progress; what comes faster replaces what was not written yet."""

_STOP_S: Final = 0.5
"""How long a handler has to stop by itself after a cancel before its task is cancelled."""

_ABANDON_S: Final = 2.0
"""How long a cancelled task has to end before its slot is given to another job."""

_GRACE_S: Final = 2.0
"""How long after an outage of Redis (or our own start, which may be one) others may still be renewing their leases:
they try twice a second while Redis is away."""

_LONGEST_BACKOFF_S: Final = 60.0
_SWEEP_S: Final = 30.0
_ORPHANS_S: Final = 3600.0

_LATER: Final = frozenset({408, 425, 429, 499})
"""Statuses below 500 that say "later", not "never"."""


class JobTicket:
    """The `Ticket` of one attempt. `progress` never waits for Redis and never fails."""

    def __init__(self, delivery: Delivery) -> None:
        """Open the ticket of a delivery."""
        self.id = delivery.id
        self.attempt = delivery.attempt
        self._latest: tuple[float, str | None] = (0.0, None)
        self._news = asyncio.Event()
        self._stop = asyncio.Event()

    async def progress(self, fraction: float, note: str | None = None) -> None:
        """Publish how far the work is, soon."""
        self._latest = (min(max(fraction, 0.0), 1.0), note)
        self._news.set()

    async def cancelled(self) -> None:
        """Return when the work should stop: cancelled, lost to another worker, or this process ends."""
        await self._stop.wait()

    def stop(self) -> None:
        """Ask the work to stop."""
        self._stop.set()

    @property
    def stopped(self) -> bool:
        """Whether somebody asked the work to stop."""
        return self._stop.is_set()

    async def publish(self, inbox: QueueConsumer, delivery: Delivery) -> None:
        """Write the latest progress whenever there is one, until cancelled."""
        while True:
            await self._news.wait()
            self._news.clear()
            with suppress(NotReady):
                await inbox.progress(delivery, *self._latest)
            await asyncio.sleep(_PROGRESS_S)


class JobWorker:
    """Runs up to `settings.job_concurrency` jobs of one inbox at a time, until `stop`."""

    def __init__(self, inbox: QueueConsumer, handler: Handler, settings: Settings) -> None:
        """Prepare a worker; `run` starts it."""
        self._inbox = inbox
        self._handler = handler
        self._settings = settings
        self._running: dict[str, tuple[JobTicket, asyncio.Task[None]]] = {}
        self._stopping = asyncio.Event()
        self._room = asyncio.Event()
        self._reached: float | None = None
        self._log = log("jobs")

    def stop(self) -> None:
        """Take no more jobs; `run` returns once those that run are finished or handed back. A second call hurries."""
        if self._stopping.is_set():
            self._stop_all()
        self._stopping.set()
        self._room.set()

    async def run(self) -> None:
        """Work until `stop`."""
        async with asyncio.TaskGroup() as group:
            background = [group.create_task(self._keep_leases()), group.create_task(self._keep_house())]
            await self._take_jobs()
            await self._drain()
            await cancel_tasks(*background)
        with suppress(NotReady):
            await self._inbox.leave()

    async def _take_jobs(self) -> None:
        while not self._stopping.is_set():
            if len(self._running) >= self._settings.job_concurrency:
                self._room.clear()
                await self._room.wait()
                continue
            try:
                found = await self._inbox.take(reclaim=self._may_reclaim())
                self._reached = self._reached or time.monotonic()
                if isinstance(found, NothingToDo):
                    await self._inbox.wait(found)
                else:
                    self._begin(found)
            except NotReady:
                self._reached = None
                await asyncio.sleep(uniform(0.1, 0.3))

    def _may_reclaim(self) -> bool:
        """Whether silence means death: after an outage of Redis everybody gets time to renew first."""
        grace = min(self._settings.job_lease_s, _GRACE_S)
        return self._reached is not None and time.monotonic() - self._reached >= grace

    def _begin(self, delivery: Delivery) -> None:
        ticket = JobTicket(delivery)
        task = asyncio.create_task(self._attempt(delivery, ticket))
        self._running[delivery.id] = (ticket, task)
        task.add_done_callback(lambda _: self._end(delivery))

    def _end(self, delivery: Delivery) -> None:
        self._running.pop(delivery.id, None)
        self._room.set()

    async def _attempt(self, delivery: Delivery, ticket: JobTicket) -> None:
        with bind(service=delivery.service, request_id=delivery.headers.get("x-request-id", "")):
            self._log.info("job begins", job=delivery.id, attempt=delivery.attempt, path=delivery.path)
            telling = asyncio.create_task(ticket.publish(self._inbox, delivery))
            work = asyncio.create_task(self._work(delivery, ticket))
            try:
                await _until_done_or_stopped(work, ticket)
            finally:
                await cancel_tasks(telling)
            await retry_until_connected(lambda: self._hand_in(delivery, ticket, work))

    async def _work(self, delivery: Delivery, ticket: JobTicket) -> Result:
        return await self._handler(await self._inbox.payload(delivery), ticket)

    async def _hand_in(self, delivery: Delivery, ticket: JobTicket, work: asyncio.Task[Result]) -> None:
        """Write what became of an attempt. May be repeated: each write is keyed by job and attempt."""
        job = {"job": delivery.id, "attempt": delivery.attempt}
        outcome = _outcome(work)
        status = codec.status_of(outcome)
        if ticket.stopped and status == Cancelled.status:
            # If the job is still ours, this process is going; if not, this changes nothing.
            await self._inbox.hand_back(delivery)
            self._log.info("job stopped", **job)
        elif isinstance(outcome, Result) and status < 400:
            kept = await self._inbox.succeed(delivery, outcome)
            self._log.info("job succeeded" if kept else "answer dropped: the job was taken from this attempt", **job)
        elif status < 500 and status not in _LATER:
            await self._inbox.fail(delivery, outcome)
            self._log.info("job failed", status=status, **job)
        else:
            await self._inbox.again(delivery, outcome, _backoff(delivery.tries, outcome))
            cause = outcome if isinstance(outcome, BaseException) else None
            self._log.warning("job attempt failed", status=status, tries=delivery.tries, exc_info=cause, **job)

    async def _keep_leases(self) -> None:
        """Renew often enough that two renewals may fail; at once when somebody cancels."""
        with self._inbox.stops.watch() as cancelled:
            while True:
                await retry_until_connected(self._renew)
                with suppress(TimeoutError):
                    async with asyncio.timeout(min(1.0, self._settings.job_lease_s / 4)):
                        await cancelled.wait()
                cancelled.clear()

    async def _renew(self) -> None:
        held = {job_id: ticket.attempt for job_id, (ticket, _) in self._running.items()}
        try:
            lost = await self._inbox.renew(held)
        except NotReady:
            self._reached = None
            raise
        for job_id in lost:
            if job_id in self._running:
                self._running[job_id][0].stop()

    async def _keep_house(self) -> None:
        period = max(0.5, min(_SWEEP_S, self._settings.job_ttl_s / 4))
        orphans_due = 0.0
        while True:
            with suppress(NotReady):
                while await self._inbox.sweep():
                    pass
                if time.monotonic() >= orphans_due:
                    await self._inbox.sweep_orphans()
                    orphans_due = time.monotonic() + _ORPHANS_S
            await asyncio.sleep(period)

    async def _drain(self) -> None:
        """Let jobs finish for a while, then hand the rest back at once."""
        tasks = [task for _, task in self._running.values()]
        if tasks:
            await asyncio.wait(tasks, timeout=self._settings.shutdown_grace_s)
            self._stop_all()
            await asyncio.wait(tasks, timeout=_STOP_S + _ABANDON_S + self._settings.job_lease_s)

    def _stop_all(self) -> None:
        for ticket, _ in self._running.values():
            ticket.stop()


async def _until_done_or_stopped(work: asyncio.Task[Result], ticket: JobTicket) -> None:
    """Wait for the work; once asked to stop it gets a moment to do so itself, then its task is cancelled."""
    stopped = asyncio.create_task(ticket.cancelled())
    try:
        await asyncio.wait({work, stopped}, return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            await asyncio.wait({work}, timeout=_STOP_S)
        if not work.done():
            work.cancel()
            await asyncio.wait({work}, timeout=_ABANDON_S)
    finally:
        stopped.cancel()
        work.cancel()


def _outcome(work: asyncio.Task[Result]) -> Result | BaseException:
    """The answer, or what was raised; a handler that was cancelled or does not end counts as cancelled."""
    if not work.done() or work.cancelled():
        return asyncio.CancelledError()
    return work.exception() or work.result()


def _backoff(tries: int, outcome: Result | BaseException) -> float:
    """Seconds until the next attempt: doubling, jittered, and no sooner than the error asks for."""
    asked = outcome.retry_after if isinstance(outcome, FoveaError) else None
    return max(asked or 0.0, min(_LONGEST_BACKOFF_S, 2.0 ** (tries - 1)) * uniform(0.5, 1))
