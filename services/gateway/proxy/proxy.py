"""The hot path: a request goes to the least loaded replica, its answer comes back as it is made.

Until the first byte of an answer has been passed on, a request that may be sent twice is: to another replica, or, with
growing pauses and until its deadline, to the next one that appears. A caller that goes away takes its upstream
connection with it, which tells the replica to stop. Knows nothing about keys, limits and jobs.
"""

from __future__ import annotations

import asyncio
import sys
from dataclasses import dataclass, field

import aiohttp

from services.gateway.http.errors import SlowBody
from services.gateway.http.request_context import RequestContext
from services.gateway.proxy.disconnect import DisconnectGuard
from services.gateway.proxy.http_client import UpstreamClient
from services.gateway.proxy.replayable_body import MemoryBudget, ReplayableBody, read_content_length
from services.gateway.proxy.response_relay import abort_response, relay_response
from services.gateway.routing.replica_registry import Replica, ReplicaRegistry
from services.gateway.routing.route_table import Route
from shared.errors import DeadlineExceeded, FoveaError, NotReady
from shared.settings import Settings
from shared.telemetry import log

__all__ = ["Proxy", "QueueInstead"]

WANTS_HEADER = "x-fovea-wants"
"""Header of a refusal: `respond-async` where the same request would be served as a job."""

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.05, 1.0

DEADLINE_GRACE_S = 1.0
"""How much longer than the deadline we wait, so that the replica's own answer about it comes first."""

DEATHS = 3
"""Connections that may break under one request before we suspect the request itself of killing replicas."""

MAX_BUFFERED_BODIES = 8
"""Memory for kept bodies of all requests, in bodies of the largest size."""

_SAFE = frozenset({"GET", "HEAD", "OPTIONS", "PUT", "DELETE"})


class UpstreamLost(Exception):
    """A replica is out of reach, and nothing of its answer has been passed on.

    Attributes:
        unseen: Whether the replica did nothing with the request.
    """

    def __init__(self, unseen: bool, reason: str) -> None:
        super().__init__(reason)
        self.unseen = unseen


class QueueInstead(Exception):
    """A replica asks for this request to be queued; nothing of its answer has been passed on."""


@dataclass(slots=True)
class _RetryState:
    """What has been tried for one request."""

    tried: set[str] = field(default_factory=set)
    deaths: int = 0
    pause: float = FIRST_PAUSE_S

    async def rest(self, longest: float) -> None:
        """Wait before the next round over the replicas."""
        await asyncio.sleep(max(min(self.pause, longest), 0))
        self.pause = min(2 * self.pause, LONGEST_PAUSE_S)
        self.tried.clear()


class Proxy:
    """Passes requests on to replicas."""

    def __init__(self, settings: Settings, fleet: ReplicaRegistry, client: UpstreamClient) -> None:
        """Send to the replicas of `fleet` through `client`."""
        self._settings, self._fleet, self._client = settings, fleet, client
        self._allowance = MemoryBudget(MAX_BUFFERED_BODIES * settings.max_body_bytes)

    def body(self, exchange: RequestContext, *, live: bool = False) -> ReplayableBody:
        """The request's body, unread; of a `live` one only a stated length is bounded, and nothing is kept.

        Raises:
            TooLarge: It states more bytes than the limit.
        """
        limit = self._settings.max_body_bytes
        length = read_content_length(exchange.headers, limit)
        endless = live and length is None
        return ReplayableBody(
            exchange.receive,
            length=length,
            limit=sys.maxsize if endless else limit,
            pause_s=self._settings.body_timeout_s,
            allowance=MemoryBudget(0) if endless else self._allowance,
        )

    async def forward(self, exchange: RequestContext, route: Route, body: ReplayableBody) -> None:
        """Answer a request from a replica of the route's service, or by all of them where the route says so.

        Raises:
            NotReady: No replica is there, or came back in time.
            DeadlineExceeded: No replica answered in time.
            Cancelled: The caller went away.
            Postponed: A replica wants it queued, and it may be.
        """
        until = None if route.live else exchange.deadline + DEADLINE_GRACE_S
        try:
            async with asyncio.timeout_at(until), DisconnectGuard(exchange, body):
                await body.prefetch()
                await (self._everywhere if route.everywhere else self._persist)(exchange, route, body)
        except TimeoutError as error:
            if exchange.status:
                return await abort_response(exchange)
            raise _late(body) from error

    async def whole(self, exchange: RequestContext, body: ReplayableBody) -> bytes:
        """All of the body, in memory.

        Raises:
            TooLarge: It outgrows the limit.
            SlowBody: It has not arrived by the deadline, or pauses too long.
        """
        try:
            async with asyncio.timeout_at(exchange.deadline):
                return await body.whole()
        except TimeoutError as error:
            raise _late(body) from error

    async def _persist(self, exchange: RequestContext, route: Route, body: ReplayableBody) -> None:
        """Try replicas until one answers or trying again makes no sense."""
        service, attempts = route.services[0], _RetryState()
        while True:
            target = self._fleet.pick(service, attempts.tried)
            if target is None:
                self._hope(service, exchange)
                await attempts.rest(exchange.left_s)
                continue
            try:
                return await self._once(exchange, target, body, attempts)
            except UpstreamLost as lost:
                self._regret(lost, exchange, route, body, attempts)
            if target.id in attempts.tried:
                await attempts.rest(exchange.left_s)
            attempts.tried.add(target.id)

    def _hope(self, service: str, exchange: RequestContext) -> None:
        """Decide whether to wait for a replica.

        Raises:
            NotReady: There is no point, or no time left.
        """
        if self._fleet.recovering(service) and exchange.left_s > 0:
            return
        state = "its replicas are still loading" if self._fleet.alive(service) else "none has announced itself"
        detail = f"No replica of {service} is ready: {state}."
        raise NotReady(detail, hint="`/readyz` says who is ready.", retry_after=5)

    def _regret(
        self, lost: UpstreamLost, exchange: RequestContext, route: Route, body: ReplayableBody, attempts: _RetryState
    ) -> None:
        """Decide whether a lost request may be sent again.

        Raises:
            NotReady: It may not: it leaves something behind, can't be replayed, or there is no time left.
        """
        attempts.deaths += not lost.unseen
        log().warning("lost a replica", request_id=exchange.context.request_id, reason=str(lost))
        safe = exchange.method in _SAFE or not route.effects
        again = lost.unseen or (safe and attempts.deaths <= DEATHS)
        if not (again and body.replayable and exchange.left_s > 0):
            detail = f"The connection to {route.services[0]} broke before it answered."
            raise NotReady(detail, hint="Send the request again.", retry_after=1) from lost

    async def _once(
        self, exchange: RequestContext, target: Replica, body: ReplayableBody, attempts: _RetryState
    ) -> None:
        """Send the request to one replica and pass its answer on.

        Raises:
            Lost: The connection failed, or the replica is not ready and there is another.
        """
        target.in_flight += 1
        try:
            async with self._client.request(exchange, target, body) as response:
                if response.status == 503 and self._others(target, attempts):
                    raise UpstreamLost(unseen=True, reason=f"{target.id} answers that it is not ready")
                if exchange.may_wait and body.replayable and response.headers.get(WANTS_HEADER) == "respond-async":
                    raise QueueInstead
                await relay_response(exchange, response)
        except aiohttp.ClientError as error:
            if body.fault is not None:
                raise body.fault from error
            if exchange.status:
                return await abort_response(exchange)
            unseen = isinstance(error, aiohttp.ClientConnectorError | aiohttp.ServerTimeoutError)
            if unseen:
                self._fleet.suspect(target)
            raise UpstreamLost(unseen, f"{target.id}: {type(error).__name__}: {error}") from error
        finally:
            target.in_flight -= 1

    def _others(self, target: Replica, attempts: _RetryState) -> bool:
        ready = self._fleet.ready(target.replica.service)
        return any(t is not target and t.id not in attempts.tried for t in ready)

    async def _everywhere(self, exchange: RequestContext, route: Route, body: ReplayableBody) -> None:
        """Send to every replica in turn; the caller gets the last answer, or the first that is an error."""
        targets = self._fleet.alive(route.services[0])
        await body.whole()
        for index, target in enumerate(targets):
            try:
                async with self._client.request(exchange, target, body) as response:
                    if response.status >= 400 or index == len(targets) - 1:
                        return await relay_response(exchange, response)
            except aiohttp.ClientError as error:
                detail = f"The replica {target.id} could not be reached; others may have done what was asked."
                raise NotReady(detail, hint="Send the request again.", retry_after=1) from error
        self._hope(route.services[0], exchange)
        return None


def _late(body: ReplayableBody) -> FoveaError:
    """Whose fault it is that the deadline passed."""
    if not body.complete:
        detail = "The body had not arrived when the deadline of the request passed."
        body.fault = SlowBody(detail, hint="Send it faster.")
        return body.fault
    detail = "The deadline of the request passed before it was answered."
    return DeadlineExceeded(detail, hint="Allow more time, or send it with `Prefer: respond-async`.")
