"""Service shell: a service's side of the ASGI shell. It gives each request a `CallContext` and renders its errors.

Routes find the context in `scope["fovea.run"]`, and put the model's name into it or into `scope["fovea.model"]`. Of a
route with the mark `ENDLESS` (`fovea.api.replica`) only a stated length counts against the limit.
"""

from __future__ import annotations

import asyncio
import json
import math
import sys

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fovea.api.replica import AUDIT_HEADER, JOB_HEADER, SCOPES_HEADER, STREAM_HEADER, is_endless
from fovea.api.usage import USAGE_HEADER
from fovea.errors import FoveaError, TooLarge
from shared import telemetry
from shared.asgi.body import Inflater, read_coding, read_content_length
from shared.asgi.errors import RawHeaders
from shared.asgi.json_bounds import PartsCounter
from shared.asgi.shell import HttpCall, ObservedRequest, Shell
from shared.jobs.progress import RemoteReport
from shared.jobs.redis_client import RedisClient
from shared.registry import CallContext
from shared.serving.http.error_rendering import render, translate
from shared.serving.watched_work import CURRENT_RUN
from shared.settings import Settings

_CLOSE = {"connection": "close"}  # sent with errors that leave part of the body unread


class ServiceCall(HttpCall):
    """One request to a service.

    Attributes:
        run: Its context, as the routes see it.
        report: Where its progress goes, if it is a job of a worker elsewhere.
    """

    def __init__(self, front: ServiceMiddleware, scope: Scope, receive: Receive, send: Send) -> None:
        settings, redis = front.settings, front.redis
        super().__init__(front.service, scope, receive, send, settings)
        self.tenant = self._header("x-fovea-tenant") or "local"
        job_id, _, attempt = self._header(JOB_HEADER).partition(" ")
        self.report: RemoteReport | None = RemoteReport(redis, job_id, attempt) if redis and attempt else None
        now = asyncio.get_running_loop().time()
        if (seconds := _read_timeout(self._header("x-fovea-deadline-ms"))) is not None:
            self.deadline = self.ends_at = now + seconds  # a caller's own deadline is for the whole answer
        if (whole := _read_timeout(self._header(STREAM_HEADER))) is not None:
            self.ends_at = now + (whole or math.inf)
        self.run = scope["fovea.run"] = CallContext(
            deadline=None if job_id else self.deadline, report=self.report, job=job_id or None, tenant=self.tenant
        )
        self.run.pause_s, self.run.ends_at = settings.request_timeout_s, self.ends_at
        scopes = self.headers.get(SCOPES_HEADER.encode())
        self.run.scopes = None if scopes is None else frozenset(scopes.decode("latin-1").split(","))
        self.run.cache_salt = "" if settings.prefix_cache_shared else self.tenant
        self.run.usage = self.usage
        self.on_cancel = self.run.cancel
        self.is_refused = False
        self._parts = PartsCounter(self.path, self._header("content-type"))

    def open_body(self) -> None:
        """Check the stated length and coding of the body, before any of it is read.

        Raises TooLarge: its stated length is too large; UnsupportedMedia: its coding is unknown.
        """
        read_content_length(self.headers, self.body.limit)
        coding = read_coding(self.headers)
        if coding:
            self.body.inflater = Inflater(coding)
            dropped = (b"content-encoding", b"content-length")
            self.scope["headers"] = [(name, value) for name, value in self.scope["headers"] if name not in dropped]

    async def receive(self) -> Message:
        """The next chunk of the body; after the last, the disconnect."""
        if self.body.complete and self.body.error is None:
            return await self.watch.wait()
        if is_endless(getattr(self.scope.get("route"), "openapi_extra", None)):
            self.body.limit = sys.maxsize - 1  # what is inflated at a time may be one more
        message = await self.body.read()
        try:
            self._parts.feed(message.get("body", b""))
        except TooLarge as error:
            self.body.error = error
            raise
        if message["type"] == "http.disconnect":
            self.cancel()
        return message

    async def send(self, message: Message) -> None:
        """Pass the answer on, with the request's id; the app's own error for a refused body is dropped."""
        if self.body.error is not None and not self.is_refused:
            return
        if message["type"] == "http.response.start":
            message["headers"] = [*message.get("headers", ()), *build_facts_headers(self.id, self.run)]
        await super().send(message)

    def _header(self, name: str) -> str:
        return self.headers.get(name.encode(), b"").decode("latin-1")


class ServiceMiddleware(Shell[ServiceCall]):
    """The outermost layer of a service's app."""

    def __init__(self, app: ASGIApp, service: str, settings: Settings) -> None:
        super().__init__(app)
        self.service = service
        self.settings = settings
        self.redis = RedisClient(settings.redis_url) if settings.redis_url else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await super().__call__(scope, receive, send)
        if scope["type"] == "lifespan" and self.redis is not None:
            await self.redis.close()

    def open(self, scope: Scope, receive: Receive, send: Send) -> ServiceCall:
        return ServiceCall(self, scope, receive, send)

    async def serve(self, call: ServiceCall) -> None:
        CURRENT_RUN.set(call.run)
        try:
            call.open_body()
            call.watch.start()
            await self.app(call.scope, call.receive, call.send)
        finally:
            if call.report is not None:
                await call.report.stop()
        if call.body.error is not None and not call.status:
            raise call.body.error  # the app rendered an error of its own for it

    async def refuse(self, call: ServiceCall, error: Exception) -> None:
        if call.status:  # too late for an error: break off, so that the caller sees a truncated response
            raise error
        failure = translate(call.body.error or error)
        log_refusal(failure)
        headers = {**getattr(failure, "headers", {}), **({} if call.body.complete else _CLOSE)}
        call.is_refused = True
        await render(call.scope, failure, headers)(call.scope, call.receive, call.send)

    def close(self, call: ServiceCall) -> None:
        call.run.model = call.scope.get("fovea.model") or call.run.model
        route = getattr(call.scope.get("route"), "path", "unmatched")
        observe_outcome(call.observed, call.run, route, call.scope.get("fovea.error", ""))


def _read_timeout(deadline_ms: str) -> float | None:
    """Seconds that the caller allows; None where it states no number."""
    try:
        seconds = float(deadline_ms) / 1000
    except ValueError:
        return None
    return seconds if math.isfinite(seconds) else None


def build_facts_headers(request_id: str, run: CallContext) -> RawHeaders:
    """Build the headers that every answer has: the request's id, what it consumed, and what the audit log is to say."""
    headers = [(b"x-request-id", request_id.encode("latin-1", "replace"))]
    usage = {**run.usage, **({"model": run.model} if run.model else {})}
    for name, facts in ((USAGE_HEADER, usage), (AUDIT_HEADER, run.audit)):
        if facts:
            headers.append((name.encode(), json.dumps(facts).encode()))
    return headers


def observe_outcome(observed: ObservedRequest, run: CallContext, route: str, error: str) -> None:
    """Complete what is observed of a call; `error` is the code of the error that it was answered with, if known."""
    observed.route, observed.model = route, run.model
    if observed.status >= 400:
        observed.error = error or str(observed.status)
    if observed.is_recorded:
        observed.facts = {"fovea.model": run.model or None, "fovea.tenant": run.tenant}
        observed.facts |= {f"fovea.usage.{name}": value for name, value in run.usage.items()}


def log_refusal(error: FoveaError) -> None:
    """Log an error that is the answer: at WARNING where the fault is on this side."""
    logger = telemetry.log()
    write = logger.warning if error.status >= 500 else logger.info
    write("refused", status=error.status, code=error.code, detail=error.detail)
