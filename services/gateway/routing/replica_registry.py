"""Which replicas there are, which of them answers next, and what the whole fleet serves.

Replicas announce themselves in Redis (`shared.api.replica`); fixed upstreams are asked (`static_upstreams`).
A record counts while its `seen` moves: a replica that has been silent for `LEASE_S` is out. While Redis is away, and
for one lease after it is back, the last known list stands. Knows nothing about requests and their retries.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from pydantic import ValidationError
from redis.asyncio import Redis
from redis.exceptions import RedisError

from services.gateway.routing.route_table import RouteTable
from services.gateway.routing.static_upstreams import StaticUpstream
from shared.api.replica import LEASE_S, ReplicaRecord, replicas_key
from shared.settings import Settings
from shared.telemetry import log

__all__ = ["Replica", "ReplicaRegistry"]

POLL_INTERVAL_S = 0.5
"""Seconds between two looks at Redis."""

SUSPECT_S = 1.0
"""How long a replica that refused a connection is passed over."""

RECOVERY_S = 60.0
"""How long a service that had a ready replica is waited for after it lost its last one."""

FORGET_S = 600.0
"""How long a silent replica's service, routes and models stay known."""


@dataclass(eq=False, slots=True)
class Replica:
    """One replica as we see it."""

    replica: ReplicaRecord
    changed: float
    in_flight: int = 0
    suspect_until: float = 0.0

    @property
    def id(self) -> str:
        """The replica's id."""
        return self.replica.id


@dataclass(slots=True)
class ServiceState:
    """What is known of one service."""

    targets: dict[str, Replica] = field(default_factory=dict)
    last_ready: float = float("-inf")


class ReplicaRegistry:
    """All services and their replicas.

    Attributes:
        routing: What the fleet serves; a new table whenever that changes.
        redis_up: Whether Redis answered last time; None where none is configured.
    """

    def __init__(self, settings: Settings) -> None:
        """Take the names of wanted services and fixed upstreams from `settings`; `start` begins to watch."""
        self.routing = RouteTable()
        self.redis_up: bool | None = False if settings.redis_url else None
        self._redis = Redis.from_url(settings.redis_url, socket_timeout=2) if settings.redis_url else None
        self._fixed = {name: StaticUpstream(name, *urls) for name, urls in settings.fixed_upstreams.items()}
        self._services = {name: ServiceState() for name in (*settings.wanted_services, *self._fixed)}
        self._wanted = frozenset(self._services)
        self._answered = self._thaw_at = float("-inf")
        self._frozen_at: float | None = None
        self._scan_due = 0.0
        self._served: frozenset[tuple[str, tuple[str, ...], tuple[str, ...]]] = frozenset()
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Look once, then keep watching."""
        looks: list[Callable[[], Awaitable[None]]] = [
            self.look,
            *(partial(self._ask, upstream) for upstream in self._fixed.values()),
        ]
        await asyncio.gather(*(look() for look in looks))
        self._tasks = [asyncio.create_task(_repeat(look)) for look in looks]

    async def stop(self) -> None:
        """Stop watching and hang up."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for upstream in self._fixed.values():
            await upstream.close()
        if self._redis is not None:
            await self._redis.aclose()

    # What there is.

    @property
    def services(self) -> list[str]:
        """Names of all services that are wanted, fixed or have been heard of."""
        return sorted(self._services)

    def ready(self, service: str) -> list[Replica]:
        """Replicas of a service that are alive and ready."""
        state = self._services.get(service)
        now = time.monotonic()
        return [t for t in state.targets.values() if t.replica.ready and self._alive(t, now)] if state else []

    def alive(self, service: str) -> list[Replica]:
        """Replicas of a service that are alive, ready or not."""
        state = self._services.get(service)
        now = time.monotonic()
        return [t for t in state.targets.values() if self._alive(t, now)] if state else []

    @property
    def unready(self) -> list[str]:
        """Services without a ready replica."""
        return [name for name in self.services if not self.ready(name)]

    @property
    def settled(self) -> bool:
        """Whether every wanted service has been heard of, and any at all."""
        return bool(self._services) and all(self._services[name].targets for name in self._wanted)

    def recovering(self, service: str) -> bool:
        """Whether the service had a ready replica a short while ago, so that waiting for the next one makes sense."""
        state = self._services.get(service)
        return state is not None and time.monotonic() - state.last_ready < RECOVERY_S

    # Who answers next.

    def pick(self, service: str, avoid: Iterable[str] = ()) -> Replica | None:
        """The ready replica with the fewest requests in flight, not one of `avoid` if there is another."""
        now = time.monotonic()
        ready = [t for t in self.ready(service) if t.suspect_until <= now]
        fresh = [t for t in ready if t.id not in avoid] if avoid else ready
        candidates = fresh or ready
        if len(candidates) < 2:
            return candidates[0] if candidates else None
        fewest = min(t.in_flight for t in candidates)
        return random.choice([t for t in candidates if t.in_flight == fewest])

    def suspect(self, target: Replica) -> None:
        """Pass over a replica that refused a connection until it renews its record, or for a second."""
        target.suspect_until = time.monotonic() + SUSPECT_S

    # Watching.

    async def look(self) -> None:
        """Read all records in Redis once; never raises."""
        if self._redis is None:
            return
        try:
            await self._discover(self._redis)
            for name in [n for n in self._services if n not in self._fixed]:
                raw: Mapping[Any, Any] = await self._redis.hgetall(replicas_key(name))
                self._note(name, raw)
        except (RedisError, OSError, TimeoutError) as error:
            self._redis_failed(error)
        else:
            self._redis_answered()
        self._settle()

    def _redis_failed(self, error: Exception) -> None:
        if self.redis_up:
            log().warning("Redis is away; the last known replicas stand", reason=str(error))
            self._frozen_at = self._answered if self._frozen_at is None else self._frozen_at
        self.redis_up = False

    def _redis_answered(self) -> None:
        now = time.monotonic()
        if not self.redis_up and self._frozen_at is not None:
            self._thaw_at = now + LEASE_S
        if self._frozen_at is not None and now >= self._thaw_at:
            self._frozen_at = None
        self.redis_up, self._answered = True, now

    async def _discover(self, redis: Redis) -> None:
        """Find services that nobody told us of; a scan that took long is not repeated soon."""
        begun = time.monotonic()
        if begun < self._scan_due:
            return
        prefix = replicas_key("")
        async for key in redis.scan_iter(match=prefix + "*", count=1000):
            name = key.decode().removeprefix(prefix)
            self._services.setdefault(name, ServiceState())
        self._scan_due = begun + 10 * (time.monotonic() - begun)

    async def _ask(self, upstream: StaticUpstream) -> None:
        record = await upstream.record()
        if record is not None:
            self._record(self._services[upstream.service], record)
        self._settle()

    def _note(self, service: str, raw: Mapping[bytes, bytes]) -> None:
        """Take over what Redis holds for a service; what it no longer holds is gone unless the list is frozen."""
        state = self._services[service]
        for blob in raw.values():
            with suppress(ValidationError):
                self._record(state, ReplicaRecord.model_validate_json(blob))
        now = time.monotonic()
        for target in list(state.targets.values()):
            gone = target.id.encode() not in raw and self._frozen_at is None
            if gone or now - target.changed > FORGET_S:
                del state.targets[target.id]
        if not state.targets and service not in self._wanted:
            del self._services[service]

    def _record(self, state: ServiceState, record: ReplicaRecord) -> None:
        now = time.monotonic()
        target = state.targets.get(record.id)
        if target is None:
            # An old record may be a dead replica's, or a live one's whose clock is behind: the next renewal tells.
            age = min(max(time.time() - record.seen, 0.0), 2 * LEASE_S)
            state.targets[record.id] = Replica(record, changed=now - age)
        elif record.seen != target.replica.seen:
            target.replica, target.changed, target.suspect_until = record, now, 0.0

    def _alive(self, target: Replica, now: float) -> bool:
        if target.replica.service in self._fixed:
            return True
        return (now if self._frozen_at is None else self._frozen_at) - target.changed < LEASE_S

    def _settle(self) -> None:
        """Draw conclusions from what was read: who was ready just now, and what the fleet serves."""
        now = time.monotonic()
        for name, state in self._services.items():
            if self.ready(name):
                state.last_ready = now
        records = [t.replica for s in self._services.values() for t in s.targets.values()]
        served = frozenset((r.service, r.models, r.routes) for r in records)
        if served != self._served:
            self._served = served
            self.routing = RouteTable.of(records)


async def _repeat(look: Callable[[], Awaitable[None]]) -> None:
    while True:
        await asyncio.sleep(POLL_INTERVAL_S)
        await look()
