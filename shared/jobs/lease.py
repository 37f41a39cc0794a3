"""Job lease: how a worker holds its jobs, and how it learns that it has lost one.

A lease is renewed several times before it ends. A worker that hung for longer, or was cut off from Redis, renews before
it takes or writes anything. Every write to Redis is fenced by the number of its attempt as well.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from typing import Final

from shared.jobs.consumer import Attempt, Delivery, QueueConsumer
from shared.jobs.progress import LatestProgress
from shared.jobs.redis_client import UNUSABLE, retry_until_connected

_RECLAIM_GRACE_S: Final = 2.0
"""How long after an outage of Redis (or our own start, which may be one) others may still be renewing their leases:
they try twice a second while Redis is away."""


class JobTicket:
    """The `Ticket` of one attempt. `progress` never waits for Redis and never fails."""

    def __init__(self, delivery: Delivery, held_at: float) -> None:
        """Open the ticket of a delivery whose lease was sure at `held_at`, an instant of the monotonic clock."""
        self.id = delivery.id
        self.attempt = delivery.attempt
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
    """The leases of one worker's attempts."""

    def __init__(self, consumer: QueueConsumer, lease_s: float) -> None:
        self._consumer, self._lease_s = consumer, lease_s
        self._tickets: dict[Attempt, JobTicket] = {}
        self._renewed_at = time.monotonic()
        self._connected_since: float | None = None

    def open(self, delivery: Delivery, held_at: float) -> JobTicket:
        """Hold a job that was just taken; an older attempt of ours at the same job is lost by that."""
        for attempt, older in self._tickets.items():
            if attempt[0] == delivery.id:
                older.lose()
        ticket = self._tickets[delivery.key] = JobTicket(delivery, held_at)
        return ticket

    def close(self, delivery: Delivery) -> None:
        """Hold an attempt no more: it is over."""
        self._tickets.pop(delivery.key, None)

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
        asked_at, held = time.monotonic(), dict(self._tickets)
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
        """Whether a lease that was sure then may be over."""
        return time.monotonic() - held_at > self._lease_s
