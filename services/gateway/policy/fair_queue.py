"""Fair queue: who may send the next request to a service, when several tenants want to.

While one tenant is alone it may have as many requests in flight as the replicas take. Once others have asked lately,
each has its share in flight and waits in a line of its own; a free place goes to the tenant that has been served least
for its weight (start-time fair queueing, Goyal et al., SIGCOMM 1996). So a flood waits behind itself.
Counts for this gateway alone. Knows nothing about keys and transports.
"""

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field

from fovea.errors import DeadlineExceeded, QueueFull
from services.gateway.policy.caller import Caller
from services.gateway.routing.replica_registry import ReplicaRegistry
from shared.retry_after import PlaceEstimate
from shared.settings import Settings
from shared.telemetry import QUEUE_TIME, observe, record_span

ACTIVE_S = 10.0
"""How long after its last request a tenant's share is kept free for it."""


@dataclass(slots=True)
class _Line:
    """One tenant at one service: what it has in flight, who waits, and how much it was served."""

    weight: float = 1.0
    in_flight: int = 0
    finish_tag: float = 0.0
    last_seen: float = float("-inf")
    waiting: deque[asyncio.Future[None]] = field(default_factory=deque)
    places: PlaceEstimate = field(default_factory=PlaceEstimate)


@dataclass(slots=True)
class _Service:
    """The lines of one service, and the start tag of what was begun last."""

    lines: dict[str, _Line] = field(default_factory=dict)
    virtual_time: float = 0.0
    capacity: int = 1
    share: int = 1

    @property
    def in_flight(self) -> int:
        return sum(line.in_flight for line in self.lines.values())


class FairQueue:
    """Places at services, shared between tenants. Belongs to one event loop."""

    def __init__(self, settings: Settings, registry: ReplicaRegistry) -> None:
        """Let up to `max_queue_size` requests of each tenant wait at each service of `registry`."""
        self._max_waiting, self._max_batch = settings.max_queue_size, settings.max_batch_size
        self._registry = registry
        self._services: dict[str, _Service] = {}

    def slot(self, caller: Caller, service: str, deadline: float) -> AbstractAsyncContextManager[None]:
        """A place for a caller at a service, as many as its ready replicas have; see `place`."""
        slots = [replica.record.slots for replica in self._registry.list_ready(service)] or [1]
        capacity = sum(max(each, self._max_batch) for each in slots)
        return self.place(
            service, caller.tenant, capacity=capacity, share=sum(slots), deadline=deadline, weight=caller.limits.weight
        )

    def count_requests(self, service: str) -> int:
        """Count the requests that a service answers or keeps waiting, of all tenants."""
        found = self._services.get(service)
        return sum(line.in_flight + len(line.waiting) for line in found.lines.values()) if found else 0

    @asynccontextmanager
    async def place(
        self, service: str, tenant: str, *, capacity: int, share: int, deadline: float, weight: float = 1.0
    ) -> AsyncIterator[None]:
        """Hold a place for a tenant at a service while the block runs, after a wait until an event-loop time.

        `capacity` requests may be in flight to the service together. While others are active, a tenant may have `share`
        of them, times its weight.

        Raises:
            QueueFull: Too many requests of this tenant wait already.
            DeadlineExceeded: No place was free in time.
        """
        state = self._services.setdefault(service, _Service())
        state.capacity, state.share = capacity, share
        line = state.lines.setdefault(tenant, _Line())
        line.weight, line.last_seen = weight, time.monotonic()
        begun = time.perf_counter()
        await self._enter(state, line, service, deadline)
        waited_s = time.perf_counter() - begun
        observe(QUEUE_TIME.labels("gateway", ""), waited_s)
        record_span("queue", waited_s)
        try:
            yield
        finally:
            line.in_flight -= 1
            line.last_seen = time.monotonic()
            self._admit_waiting(state)

    async def _enter(self, state: _Service, line: _Line, service: str, deadline: float) -> None:
        if not line.waiting and self._may_start(state, line):
            self._start(state, line)
            return
        if len(line.waiting) >= self._max_waiting:
            detail = f"{len(line.waiting)} of your requests wait for {service}; the limit is {self._max_waiting}."
            hint = "Send fewer at a time, or send them as jobs."
            raise QueueFull(detail, hint=hint, retry_after=line.places.send_away())
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        line.waiting.append(turn)
        line.places.enter(turn)
        try:
            async with asyncio.timeout_at(deadline):
                await turn
        except BaseException as error:
            if turn.done() and not turn.cancelled():
                line.in_flight -= 1
                self._admit_waiting(state)
            elif turn in line.waiting:
                line.waiting.remove(turn)
            if isinstance(error, TimeoutError):
                detail = f"No place at {service} was free before the deadline (FOVEA_REQUEST_TIMEOUT_S)."
                raise DeadlineExceeded(detail, hint="Send it as a job, or allow more time.") from error
            raise
        finally:
            line.places.leave(turn)

    def _may_start(self, state: _Service, line: _Line) -> bool:
        limit = state.capacity
        if any(other is not line and self._is_active(other) for other in state.lines.values()):
            share = min(limit, max(1, int(state.share * line.weight)))
            # A tenant that has nothing in flight is not kept out by one that had all places to itself a moment ago.
            room = 2 * limit if line.in_flight == 0 else limit
            return line.in_flight < share and state.in_flight < room
        return state.in_flight < limit

    def _is_active(self, line: _Line) -> bool:
        return bool(line.in_flight or line.waiting) or time.monotonic() - line.last_seen < ACTIVE_S

    def _start(self, state: _Service, line: _Line) -> None:
        line.in_flight += 1
        start_tag = max(state.virtual_time, line.finish_tag)
        line.finish_tag = start_tag + 1 / max(line.weight, 0.01)  # beyond, tags are too large for a turn to count
        state.virtual_time = start_tag

    def _admit_waiting(self, state: _Service) -> None:
        """Give free places to the lines that were served least; forget tenants that have gone."""
        while ready := [line for line in state.lines.values() if line.waiting and self._may_start(state, line)]:
            line = min(ready, key=lambda each: max(state.virtual_time, each.finish_tag))
            turn = line.waiting.popleft()
            if not turn.done():
                self._start(state, line)
                turn.set_result(None)
        if len(state.lines) > 1000:
            state.lines = {tenant: line for tenant, line in state.lines.items() if self._is_active(line)}
