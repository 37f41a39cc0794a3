"""What every request passes first: identity, permission, limits; then either a replica, the job queue or our own app.

A plain ASGI layer, so that proxied requests see no web framework. Knows who decides each question, and decides none.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import MutableMapping
from contextlib import suppress
from typing import Any, Protocol

from starlette.types import ASGIApp, Receive, Scope, Send

from services.gateway.http.errors import add_security_headers, send_error
from services.gateway.http.request_context import RequestContext
from services.gateway.policy.auth import LOCAL, Caller, KeyRing, read_credentials
from services.gateway.policy.auth import KeyScope as Permission
from services.gateway.policy.local_only import require_local_request
from services.gateway.policy.rate_limits import RateLimiter
from services.gateway.proxy.proxy import Proxy, QueueInstead
from services.gateway.proxy.response_relay import abort_response
from services.gateway.routes import jobs
from services.gateway.routing.model_routing import resolve_service
from services.gateway.routing.replica_registry import ReplicaRegistry
from services.gateway.routing.route_table import Route
from shared.errors import Fault, FoveaError
from shared.jobs.queue import JobQueue
from shared.settings import Settings
from shared.telemetry import ERRORS, IN_FLIGHT, REQUEST_LATENCY, REQUESTS, log

__all__ = ["GatewayDependencies", "GatewayMiddleware"]

DRAIN_BODY_S, DRAIN_BODY_BYTES = 2.0, 2**26
"""How long, and for how many bytes, we read on after refusing a body, so that the caller can read why."""

_GUARDED = ("/v1/", "/v2", "/metrics")
_OPEN = frozenset({"/v2/health/live", "/v2/health/ready"})


class GatewayDependencies(Protocol):
    """Those who decide; the gateway is made of them."""

    settings: Settings
    fleet: ReplicaRegistry
    proxy: Proxy
    keys: KeyRing
    limits: RateLimiter
    queue: JobQueue | None


class GatewayMiddleware:
    """ASGI middleware around the gateway's own app."""

    def __init__(self, app: ASGIApp, staff: GatewayDependencies) -> None:
        """Serve replicas' routes here, and everything else from `app`."""
        self._app, self._staff = app, staff
        self._local = staff.settings.auth == "insecure-local"
        self._in_flight = IN_FLIGHT.labels("gateway")
        self._log = log()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request; other scopes go to the app."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        exchange = RequestContext.of(scope, receive, send, self._staff.settings.deadline_s)
        self._in_flight.inc()
        try:
            await self._serve(exchange)
        except FoveaError as error:
            await self._refuse(exchange, error)
        except Exception as error:  # noqa: BLE001 - the last resort: a problem for the caller, the cause for the log
            self._log.error("failed", request_id=exchange.context.request_id, path=exchange.path, exc_info=error)
            await self._refuse(exchange, Fault("The gateway failed on this request.", hint="Its log says why."))
        finally:
            self._in_flight.dec()
            self._account(exchange)

    def _account(self, exchange: RequestContext) -> None:
        """Count what was answered; a line in the log at DEBUG, or at WARNING where the fault is ours."""
        seconds = time.perf_counter() - exchange.begun
        REQUESTS.labels("gateway", exchange.model, exchange.route, str(exchange.status)).inc()
        REQUEST_LATENCY.labels("gateway", exchange.route).observe(seconds)
        tell = self._log.warning if exchange.status >= 500 else self._log.debug
        tell(
            "answered",
            request_id=exchange.context.request_id,
            method=exchange.method,
            path=exchange.path,
            status=exchange.status,
            seconds=round(seconds, 4),
            tenant=exchange.caller.tenant,
        )

    async def _serve(self, exchange: RequestContext) -> None:
        staff, path = self._staff, exchange.path
        if self._local:
            require_local_request(exchange, staff.settings.host)
        guarded = path.startswith(_GUARDED) and path not in _OPEN
        route = None if guarded else staff.fleet.routing.find(path)
        if guarded or route is not None:
            await self._admit(exchange)
        exchange.shorten()
        if guarded:
            route = staff.fleet.routing.find(path)
        if route is None:
            await self._own(exchange)
        else:
            exchange.route, exchange.model = route.label, route.model
            await self._proxied(exchange, route)

    async def _admit(self, exchange: RequestContext) -> None:
        staff = self._staff
        caller: Caller = LOCAL if self._local else staff.keys.caller(read_credentials(exchange.headers))
        caller.demand(_permission(exchange.path))
        exchange.caller = caller
        if (standing := await staff.limits.count(caller)) is not None:
            exchange.extra += standing.headers

    async def _proxied(self, exchange: RequestContext, route: Route) -> None:
        proxy = self._staff.proxy
        as_job = exchange.method == "POST" and not route.everywhere and jobs.prefers_async(exchange.headers)
        body = exchange.body = proxy.body(exchange, live=route.live and not as_job)
        try:
            if as_job:
                exchange.caller.demand("jobs")
            if len(route.services) > 1:
                route = resolve_service(exchange, route, await proxy.whole(exchange, body), self._staff.fleet.routing)
            if as_job:
                await jobs.submit_job(exchange, self._staff.queue, route.services[0], await proxy.whole(exchange, body))
            else:
                exchange.may_wait = self._may_wait(exchange, route)
                await proxy.forward(exchange, route, body)
        except QueueInstead:
            await jobs.submit_job(exchange, self._staff.queue, route.services[0], await proxy.whole(exchange, body))
        finally:
            body.release()

    def _may_wait(self, exchange: RequestContext, route: Route) -> bool:
        """Whether a replica may have this request queued that was sent to be answered at once."""
        queued = self._staff.queue is not None and "jobs" in exchange.caller.scopes
        return queued and exchange.method == "POST" and not route.everywhere

    async def _own(self, exchange: RequestContext) -> None:
        async def send(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                exchange.status = message["status"]
                own = [*message.get("headers", ()), *exchange.extra]
                message = {**message, "headers": own + add_security_headers(own)}
            await exchange.send(message)

        exchange.scope["fovea.exchange"] = exchange
        await self._app(exchange.scope, exchange.receive, send)
        exchange.route = getattr(exchange.scope.get("route"), "path", "other")

    async def _refuse(self, exchange: RequestContext, error: FoveaError) -> None:
        ERRORS.labels("gateway", exchange.model, error.code).inc()
        if exchange.status:
            await abort_response(exchange)
        elif error.status == 499:
            exchange.status = 499
        else:
            unread = exchange.unread
            extra = [*exchange.extra, (b"connection", b"close")] if unread else exchange.extra
            exchange.status = await send_error(exchange.send, error, exchange.path, exchange.context.request_id, extra)
            if unread:
                await _linger(exchange)


async def _linger(exchange: RequestContext) -> None:
    """Read on for a while after a refusal, then hang up: a caller that is still sending would miss the answer."""
    seen, more = 0, True
    with suppress(TimeoutError):
        async with asyncio.timeout(DRAIN_BODY_S):
            while more and seen < DRAIN_BODY_BYTES:
                message = await exchange.receive()
                more = message.get("more_body", False)
                seen += len(message.get("body", b""))
    await exchange.send({"type": "http.response.body", "body": b""})


def _permission(path: str) -> Permission:
    if path.startswith("/v1/jobs"):
        return "jobs"
    if path.startswith("/v2/repository/models/"):
        return "admin"
    return "metrics" if path.startswith("/metrics") else "infer"
