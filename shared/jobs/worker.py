"""Job worker: takes jobs, runs them through a `Handler` and records the outcomes.

An outage of Redis stops the taking, not the running: outcomes wait until Redis is back. A worker may be given a job of
its own again, so whatever belongs to an attempt goes by job and number.

A lease is renewed several times before it ends. A worker that hung for longer, or was cut off from Redis, renews before
it takes or writes anything. Every write to Redis is fenced by the number of its attempt as well.
"""

import asyncio
import time
from contextlib import suppress
from functools import partial
from random import uniform
from typing import Final

from fovea.errors import Cancelled, FoveaError
from shared.jobs import codec
from shared.jobs.consumer import Attempt, Delivery, NothingToDo, QueueConsumer
from shared.jobs.progress import LatestProgress
from shared.jobs.queue import Handler, Result
from shared.jobs.redis_client import UNUSABLE, cancel_tasks, retry_until_connected
from shared.settings import Settings
from shared.telemetry import Span, bind, log, span

_STOP_GRACE_S: Final = 0.5  # which a handler has to stop by itself after a cancel before its task is cancelled
_CANCEL_GRACE_S: Final = 2.0  # which a cancelled task has to end before its slot is given to another job
# How long after an outage of Redis (or our own start, which may be one) others may still be renewing their leases: they
# try twice a second while Redis is away.
_RECLAIM_GRACE_S: Final = 2.0
_MAX_BACKOFF_S: Final = 60.0
_SWEEP_INTERVAL_S: Final = 30.0
_ORPHAN_SWEEP_INTERVAL_S: Final = 3600.0

_RETRYABLE: Final = frozenset({408, 425, 429, 499})  # statuses below 500 after which another attempt may succeed


class JobTicket:
    """The `Ticket` of one attempt. `progress` never waits for Redis and never fails."""

    def __init__(self, delivery: Delivery, held_at: float) -> None:
        """Open the ticket of a delivery whose lease was sure at `held_at`, an instant of the monotonic clock."""
        self.delivery = delivery
        self.id, self.attempt = delivery.key
        self.task: asyncio.Task[None] | None = None
        self.latest = LatestProgress()
        self._stop = asyncio.Event()
        self.held_at = held_at
        self.is_lost = False

    async def progress(self, fraction: float, note: str | None = None) -> None:
        """Publish how far the work is, soon."""
        self.latest.set(fraction, note)

    async def wait_until_cancelled(self) -> None:
        """Return when the work should stop: cancelled, lost to another worker, or this process ends."""
        await self._stop.wait()

    def stop(self) -> None:
        """Ask the work to stop."""
        self._stop.set()

    def lose(self) -> None:
        """The job is no longer this attempt's: the work stops, and what comes of it is dropped."""
        self.is_lost = True
        self.stop()

    @property
    def stopped(self) -> bool:
        """Whether the work was asked to stop."""
        return self._stop.is_set()


class JobLeases:
    """The leases of one worker's attempts; `held` are their tickets."""

    def __init__(self, consumer: QueueConsumer, lease_s: float) -> None:
        self._consumer, self._lease_s = consumer, lease_s
        self.held: dict[Attempt, JobTicket] = {}
        self._renewed_at = time.monotonic()
        self._connected_since: float | None = None

    def open(self, delivery: Delivery, held_at: float) -> JobTicket:
        """Hold a job that was just taken; an older attempt of ours at the same job is lost by that."""
        for attempt, older in self.held.items():
            if attempt[0] == delivery.id:
                older.lose()
        ticket = self.held[delivery.key] = JobTicket(delivery, held_at)
        return ticket

    def note_connection(self, *, is_up: bool) -> None:
        """Note whether Redis answered."""
        self._connected_since = (self._connected_since or time.monotonic()) if is_up else None

    @property
    def may_reclaim(self) -> bool:
        """Whether an expired lease means a dead worker: after an outage of Redis all get time to renew first."""
        grace = min(self._lease_s, _RECLAIM_GRACE_S)
        return self._connected_since is not None and time.monotonic() - self._connected_since >= grace

    async def require_fresh(self) -> None:
        """Renew first where this process hung, or Redis was away: others may have hung with us, and renew now."""
        if self._is_overdue(self._renewed_at):
            await self.renew()
            self._connected_since = time.monotonic()

    async def holds(self, ticket: JobTicket) -> bool:
        """Whether an attempt may write: asked of Redis when its lease may be over."""
        if not ticket.is_lost and self._is_overdue(ticket.held_at):
            await self.renew()
        return not ticket.is_lost

    async def renew(self) -> None:
        """Renew all leases, and tell the attempts that have lost theirs."""
        asked_at, held = time.monotonic(), dict(self.held)
        try:
            lost = await self._consumer.renew(tuple(held))
        except UNUSABLE:
            self._connected_since = None
            raise
        self._renewed_at = asked_at
        for attempt, ticket in held.items():
            ticket.held_at = asked_at
            if attempt in lost:
                ticket.lose()

    async def keep_renewing(self) -> None:
        """Renew often enough that two renewals may fail; at once when a job is cancelled."""
        with self._consumer.stops.watch() as cancelled:
            while True:
                await retry_until_connected(self.renew)
                with suppress(TimeoutError):
                    async with asyncio.timeout(min(1.0, self._lease_s / 4)):
                        await cancelled.wait()
                cancelled.clear()

    def _is_overdue(self, held_at: float) -> bool:
        return time.monotonic() - held_at > self._lease_s


class JobWorker:
    """Runs up to `settings.job_concurrency` jobs of one consumer at a time, until `stop`."""

    def __init__(self, consumer: QueueConsumer, handler: Handler, settings: Settings) -> None:
        self._consumer = consumer
        self._handler = handler
        self._settings = settings
        self._leases = JobLeases(consumer, settings.job_lease_s)
        self._stopping = asyncio.Event()
        self._is_hurried = False
        self._slot_free = asyncio.Event()
        self._log = log("jobs")

    @property
    def busy(self) -> int:
        """Jobs that run."""
        return len(self._leases.held)

    def stop(self) -> None:
        """Take no more jobs; `run` returns once those that run are finished or released. A second call hurries."""
        if self._stopping.is_set():
            self._is_hurried = True
            self._stop_all()
        self._stopping.set()
        self._slot_free.set()

    async def fail_all(self, error: FoveaError) -> None:
        """Fail every running job with an error, for good: this process ends, and no other is to try them."""
        held = [ticket.delivery for ticket in self._leases.held.values() if not ticket.is_lost]
        await asyncio.gather(*(self._consumer.fail(delivery, error) for delivery in held))

    async def run(self) -> None:
        """Work until `stop`."""
        async with asyncio.TaskGroup() as group:
            background = [group.create_task(one) for one in (self._leases.keep_renewing(), self._sweep_periodically())]
            await self._take_jobs()
            await self._drain()
            await cancel_tasks(*background)
        with suppress(*UNUSABLE):
            await self._consumer.leave()

    async def _take_jobs(self) -> None:
        while not self._stopping.is_set():
            if self.busy >= self._settings.job_concurrency:
                self._slot_free.clear()
                await self._slot_free.wait()
                continue
            try:
                await self._leases.require_fresh()
                asked_at = time.monotonic()
                found = await self._consumer.take(reclaim=self._leases.may_reclaim)
                self._leases.note_connection(is_up=True)
                if isinstance(found, NothingToDo):
                    await self._consumer.wait(found)
                else:
                    self._begin(found, asked_at)
            except UNUSABLE:
                self._leases.note_connection(is_up=False)
                await asyncio.sleep(uniform(0.1, 0.3))

    def _begin(self, delivery: Delivery, held_at: float) -> None:
        ticket = self._leases.open(delivery, held_at)
        ticket.task = asyncio.create_task(self._attempt(delivery, ticket))
        ticket.task.add_done_callback(lambda _: self._end(delivery))

    def _end(self, delivery: Delivery) -> None:
        self._leases.held.pop(delivery.key, None)
        self._slot_free.set()

    async def _attempt(self, delivery: Delivery, ticket: JobTicket) -> None:
        ids = {"service": delivery.service, "request_id": delivery.headers.get("x-request-id", "")}
        with bind(**ids), _begin_span(delivery) as attempt:
            self._log.info("job begins", job=delivery.id, attempt=delivery.attempt, path=delivery.path)
            publishing = asyncio.create_task(ticket.latest.publish(partial(self._write_progress, delivery, ticket)))
            work = asyncio.create_task(self._work(delivery, ticket))
            try:
                await _until_done_or_stopped(work, ticket)
            finally:
                await cancel_tasks(publishing)
            if await retry_until_connected(lambda: self._leases.holds(ticket)):
                await retry_until_connected(lambda: self._record_outcome(delivery, ticket, work))
            else:
                dropped = "answer dropped: cancelled, or another attempt has the job"
                self._log.info(dropped, job=delivery.id, attempt=delivery.attempt)
            status = codec.get_status(_outcome(work))
            attempt.set_attributes({"http.response.status_code": status})
            if status >= 400:
                attempt.fail(str(status))

    async def _work(self, delivery: Delivery, ticket: JobTicket) -> Result:
        if not await retry_until_connected(lambda: self._leases.holds(ticket)):
            raise asyncio.CancelledError  # it hung between the taking and here
        payload = await retry_until_connected(lambda: self._consumer.payload(delivery))  # an outage uses up no attempt
        return await self._handler(payload, ticket)

    async def _write_progress(self, delivery: Delivery, ticket: JobTicket, fraction: float, note: str | None) -> None:
        if await self._leases.holds(ticket):
            await self._consumer.progress(delivery, fraction, note)

    async def _record_outcome(self, delivery: Delivery, ticket: JobTicket, work: asyncio.Task[Result]) -> None:
        """Record the outcome of an attempt. May be repeated: each write is keyed by job and attempt."""
        job = {"job": delivery.id, "attempt": delivery.attempt}
        outcome = _outcome(work)
        status = codec.get_status(outcome)
        if ticket.stopped and status == Cancelled.status:
            # This process is going, or Redis has not told yet that the job is lost: then this changes nothing.
            await self._consumer.release(delivery)
            self._log.info("job stopped", **job)
        elif isinstance(outcome, Result) and status < 400:
            accepted = await self._consumer.succeed(delivery, outcome)
            self._log.info("job succeeded" if accepted else "answer dropped: another attempt has the job", **job)
        elif status < 500 and status not in _RETRYABLE:
            await self._consumer.fail(delivery, outcome)
            self._log.info("job failed", status=status, **job)
        else:
            await self._consumer.retry(delivery, outcome, _backoff(delivery.tries, outcome))
            cause = outcome if isinstance(outcome, BaseException) else None
            self._log.warning("job attempt failed", status=status, tries=delivery.tries, exc_info=cause, **job)

    async def _sweep_periodically(self) -> None:
        period = max(0.5, min(_SWEEP_INTERVAL_S, self._settings.job_ttl_s / 4))
        orphans_due = 0.0
        while True:
            with suppress(*UNUSABLE):
                while await self._consumer.sweep():
                    pass
                if time.monotonic() >= orphans_due:
                    await self._consumer.sweep_orphans()
                    orphans_due = time.monotonic() + _ORPHAN_SWEEP_INTERVAL_S
            await asyncio.sleep(period)

    async def _drain(self) -> None:
        """Let jobs finish within the grace period, then release the rest at once."""
        tasks = [ticket.task for ticket in self._leases.held.values() if ticket.task is not None]
        if tasks:
            await asyncio.wait(tasks, timeout=0 if self._is_hurried else self._settings.shutdown_grace_s)
            self._stop_all()
            await asyncio.wait(tasks, timeout=_STOP_GRACE_S + _CANCEL_GRACE_S + self._settings.job_lease_s)

    def _stop_all(self) -> None:
        for ticket in self._leases.held.values():
            ticket.stop()


def _begin_span(delivery: Delivery) -> Span:
    """Begin the span of an attempt: a trace of its own, linked to the request that was accepted."""
    attributes = {
        "messaging.system": "redis", "messaging.operation.type": "process", "messaging.operation.name": "process",
        "messaging.destination.name": delivery.service, "messaging.message.id": delivery.id,
        "fovea.job.attempt": delivery.attempt, "fovea.tenant": delivery.tenant,
        "url.path": delivery.path.partition("?")[0][:200],
    }  # fmt: skip
    links = (delivery.headers.get("traceparent", ""),)
    return span(f"process {delivery.service}", attributes, kind="consumer", parent="", links=links)


async def _until_done_or_stopped(work: asyncio.Task[Result], ticket: JobTicket) -> None:
    """Wait for the work; once stopped, it gets a moment to end by itself, then its task is cancelled."""
    stopped = asyncio.create_task(ticket.wait_until_cancelled())
    try:
        await asyncio.wait({work, stopped}, return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            await asyncio.wait({work}, timeout=_STOP_GRACE_S)
        if not work.done():
            work.cancel()
            await asyncio.wait({work}, timeout=_CANCEL_GRACE_S)
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
    stated = outcome.retry_after if isinstance(outcome, FoveaError) else None
    return max(stated or 0.0, min(_MAX_BACKOFF_S, 2.0 ** (tries - 1)) * uniform(0.5, 1))
