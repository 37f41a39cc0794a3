"""Gateway middleware: authentication, permission, rate limits; then a replica, the job queue or the gateway's own app.

Plain ASGI, so that proxied requests pass through no web framework. Each decision is made elsewhere; this calls them.
"""

import asyncio
import json
import re
from collections.abc import MutableMapping, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext, suppress
from typing import Any

from starlette.types import ASGIApp, Receive, Scope, Send

from fovea.errors import Fault, FoveaError, NotReady, UnsupportedMedia
from services.gateway.gateway import Gateway
from services.gateway.http.errors import add_security_headers, send_error
from services.gateway.http.request_context import RequestContext, require_local_request
from services.gateway.policy.audit_log import STEERING_FIELDS
from services.gateway.policy.caller import INSIDE_PATHS, find_scope
from services.gateway.policy.quotas import QuotaSpent
from services.gateway.proxy.proxy import QueueInstead
from services.gateway.proxy.response_relay import abort_response
from services.gateway.routes import jobs
from services.gateway.routing.json_peek import has_json_field
from services.gateway.routing.model_routing import resolve_service
from services.gateway.routing.route_table import Route
from shared.asgi.body import Inflater, read_coding
from shared.asgi.shell import Shell
from shared.telemetry import log, span

DRAIN_BODY_S, DRAIN_BODY_BYTES = 2.0, 2**26
"""How long, and for how many bytes, a refused body is still read, so that the caller can read the answer."""

MAX_INFLATED_BYTES = 2**22
"""Bytes of a compressed job that are looked at; one that goes on is audited whatever it holds."""

_GUARDED_PATHS = ("/v1/", "/v2", "/metrics")
_OPEN_PATHS = frozenset({"/v2/health/live", "/v2/health/ready"})


class GatewayMiddleware(Shell[RequestContext]):
    """The gateway's side of the ASGI shell, around the gateway's own app."""

    def __init__(self, app: ASGIApp, gateway: Gateway, guarded: Sequence[re.Pattern[str]] = ()) -> None:
        """Serve the replicas' routes here, and everything else from `app`; `guarded` are paths that need a key, too."""
        super().__init__(app)
        self._gateway, self._guarded = gateway, guarded
        self._local = gateway.settings.auth == "insecure-local"
        self._log = log()

    def open(self, scope: Scope, receive: Receive, send: Send) -> RequestContext:
        if scope["method"] == "HEAD":  # as GET; the server itself sends no body to a HEAD
            scope = {**scope, "method": "GET"}
        return RequestContext(scope, receive, send, self._gateway.settings)

    async def refuse(self, ctx: RequestContext, error: Exception) -> None:
        if not isinstance(error, FoveaError):
            self._log.error("failed", request_id=ctx.id, path=ctx.path, exc_info=error)
            error = Fault("The gateway failed on this request.", hint="See its log for the reason.")
        await self._send_error(ctx, error)

    def close(self, ctx: RequestContext) -> None:
        """Log the answer: at WARNING where the fault is on this side, else at DEBUG."""
        observed = ctx.observed
        observed.route, observed.model = ctx.route, ctx.model
        observed.facts = {"fovea.tenant": ctx.caller.tenant, "fovea.model": ctx.model or None}
        write = self._log.warning if ctx.status >= 500 else self._log.debug
        write(
            "answered", request_id=ctx.id, method=ctx.method, path=ctx.path, status=ctx.status,
            seconds=round(observed.seconds, 4), tenant=ctx.caller.tenant,
        )  # fmt: skip

    async def serve(self, ctx: RequestContext) -> None:
        gateway, path = self._gateway, ctx.path
        _require_known_coding(ctx)
        if self._local:
            require_local_request(ctx, gateway.settings.host)
        is_guarded = path.startswith(_GUARDED_PATHS) or any(each.match(path) for each in self._guarded)
        is_guarded = is_guarded and path not in _OPEN_PATHS
        route = None if is_guarded else gateway.registry.routes.find(path)
        if is_guarded or route is not None:
            with span("authenticate"):
                await self._admit(ctx)
        ctx.apply_caller_deadline()
        if is_guarded:
            route = gateway.registry.routes.find(path)
        try:
            async with gateway.revocations.end_when_revoked(ctx.caller):
                if route is None:
                    _require_readable(ctx)
                    await self._run_own_app(ctx)
                else:
                    ctx.route, ctx.model = route.label, route.model
                    await self._forward(ctx, route)
        except asyncio.CancelledError:  # by the server, which stops and has waited for its grace
            if ctx.streams_events:
                await abort_response(ctx, NotReady("The gateway is stopping.", hint="Send the request again."))
            raise

    async def _admit(self, ctx: RequestContext) -> None:
        gateway = self._gateway
        ctx.caller = caller = await gateway.authenticate(ctx.headers, (ctx.scope.get("client") or ("",))[0])
        try:
            status = await gateway.limits.count(caller, may_spend=ctx.method == "POST")
        except QuotaSpent as spent:
            ctx.extra_headers += spent.counter.headers
            raise
        if status is not None:
            ctx.extra_headers += status.headers
        if not ctx.path.startswith("/v1/usage"):  # it tells each caller its own, and asks for `admin` itself
            caller.require_scope(find_scope(ctx.path, ctx.method))

    async def _forward(self, ctx: RequestContext, route: Route) -> None:
        proxy = self._gateway.proxy
        as_job = ctx.method == "POST" and not route.is_broadcast and jobs.prefers_async(ctx.scope["headers"])
        body = proxy.open_body(ctx, is_endless=route.is_endless and not as_job)
        try:
            if as_job:
                ctx.caller.require_scope("jobs")
            if len(route.services) > 1:
                _require_readable(ctx)
                with span("route") as routing:
                    whole = await proxy.read_body(ctx, body)
                    route = await resolve_service(ctx, route, whole, self._gateway.registry.routes)
                    routing.set_attributes({"fovea.service": route.services[0]})
            if as_job:
                await self._submit(ctx, route, await proxy.read_body(ctx, body))
            else:
                if route.is_broadcast:
                    self._gateway.audit.write(f"{ctx.caller.tenant}/{ctx.caller.key}", "model control", ctx.path[:200])
                has_queue = self._gateway.queue is not None and "jobs" in ctx.caller.scopes
                ctx.may_queue = has_queue and ctx.method == "POST" and not route.is_broadcast
                try:
                    async with self._place(ctx, route):
                        await proxy.forward(ctx, route, body)
                finally:  # also where the caller hangs up before the end
                    await self._charge(ctx)
        except QueueInstead:
            await self._submit(ctx, route, await proxy.read_body(ctx, body))
        finally:
            body.release()

    async def _submit(self, ctx: RequestContext, route: Route, body: bytes) -> None:
        """Queue a request as a job. No replica states its effect on a model, so its body is read."""
        may_steer = ctx.path.startswith(INSIDE_PATHS) or await _may_steer(body, read_coding(ctx.headers))
        await jobs.submit_job(ctx, self._gateway.queue, route.services[0], body)
        if may_steer:
            self._audit(ctx, "interventions queued")

    async def _charge(self, ctx: RequestContext) -> None:
        """Write what an answered request consumed into the ledger, and count its tokens against its quotas."""
        if not 200 <= ctx.status < 400:
            return
        if act := ctx.audit.pop("act", None):
            self._audit(ctx, act, **ctx.audit)
        scanner = ctx.scanner
        tokens = scanner.sum_up(ctx.observed.seconds) if scanner else {}
        model = ctx.model or (scanner.model if scanner else "") or ctx.told_model
        self._gateway.usage.add(ctx.caller.tenant, model, {**ctx.usage, **tokens})
        spent = tokens.get("tokens_in", 0) + tokens.get("tokens_out", 0)
        await self._gateway.limits.spend_tokens(ctx.caller, int(spent))

    def _audit(self, ctx: RequestContext, act: str, **details: str) -> None:
        actor = f"{ctx.caller.tenant}/{ctx.caller.key}"
        self._gateway.audit.write(actor, act, ctx.path[:200], request_id=ctx.id, **details)

    def _place(self, ctx: RequestContext, route: Route) -> AbstractAsyncContextManager[None]:
        """The caller's place at the service; a local caller, a broadcast and what never ends need none."""
        if route.is_broadcast or route.is_endless:
            return nullcontext()
        return self._gateway.find_place(ctx.caller, route.services[0], ctx.deadline)

    async def _run_own_app(self, ctx: RequestContext) -> None:
        async def send(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                headers = [*message.get("headers", ()), *ctx.extra_headers]
                ctx.streams_events = dict(headers).get(b"content-type", b"").startswith(b"text/event-stream")
                message = {**message, "headers": add_security_headers(headers)}
            await ctx.send(message)

        ctx.scope["fovea.request_context"] = ctx
        await self.app(ctx.scope, ctx.receive, send)
        ctx.route = getattr(ctx.scope.get("route"), "path", "other")

    async def _send_error(self, ctx: RequestContext, error: FoveaError) -> None:
        ctx.observed.error = error.code
        if ctx.status:
            await abort_response(ctx, error)
        elif error.status == 499:
            ctx.status = 499
        else:
            must_close = ctx.has_unread_body
            extra = [*ctx.extra_headers, (b"connection", b"close")] if must_close else ctx.extra_headers
            ctx.status = await send_error(ctx.send, error, ctx.path, ctx.id, extra)
            if must_close:
                await _drain_body(ctx)


async def _drain_body(ctx: RequestContext) -> None:
    """Read on for a while after a refusal, then close: a caller that is still sending would miss the answer."""
    size, has_more = 0, True
    with suppress(TimeoutError):
        async with asyncio.timeout(DRAIN_BODY_S):
            while has_more and size < DRAIN_BODY_BYTES:
                message = await ctx.receive()
                has_more = message.get("more_body", False)
                size += len(message.get("body", b""))
    await ctx.send({"type": "http.response.body", "body": b""})


def _require_readable(ctx: RequestContext) -> None:
    """Check that a body that is read here is not compressed. Raises UnsupportedMedia: it is."""
    if coding := read_coding(ctx.headers):
        detail = f"{ctx.path[:200]} takes no compressed body ({coding[:40]})."
        raise UnsupportedMedia(detail, hint="Send it without content-encoding.")


def _require_known_coding(ctx: RequestContext) -> None:
    """Check that no body is compressed for the connection alone, as its bytes go on as they are."""
    codings = [value.strip().lower() for name, value in ctx.scope["headers"] if name == b"transfer-encoding"]
    if codings and codings != [b"chunked"]:
        raise UnsupportedMedia("No transfer coding but chunked is read.", hint="Compress with content-encoding.")


async def _may_steer(body: bytes, coding: str = "") -> bool:
    """Whether a body may steer a model or look inside; only names with escapes need more than a search for bytes.

    Raises UnsupportedMedia, Malformed: it is not of its content coding.
    """
    if coding:
        body = await Inflater(coding).inflate(body, MAX_INFLATED_BYTES)
    if not (encoding := json.detect_encoding(body)).startswith("utf-8"):  # as services read it
        body = body.decode(encoding, "replace").encode()
    if any(f'"{name}"'.encode() in body for name in STEERING_FIELDS) or (coding and len(body) >= MAX_INFLATED_BYTES):
        return True
    return b"\\u" in body and await asyncio.to_thread(has_json_field, body, STEERING_FIELDS)
