"""What every request passes: ids, trace, limits on its body, its Run, metrics, and errors turned into answers.

Pure ASGI, one class, because it lies on the hot path. It knows no models: routes put the model's name into
`scope["fovea.model"]` for the metrics. `scope["fovea.run"]` is the request's Run, made here unless a job brought one.
Of a route with the mark `ENDLESS` (`shared.api.replica`) only a stated length counts against the limit.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Mapping
from functools import cache

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from shared import telemetry
from shared.api.replica import is_endless
from shared.errors import FoveaError, TooLarge
from shared.registry import CallContext
from shared.serving.http.error_rendering import render, translate
from shared.serving.http.errors import TooSlow
from shared.settings import Settings

__all__ = ["ServiceMiddleware"]

_WATCH_AFTER_S = 0.05
"""Requests that take longer than this are watched for the caller's going away."""

_HEADERS = (b"x-request-id", b"traceparent", b"x-fovea-deadline-ms", b"content-length")

_CLOSE = {"connection": "close"}
"""Sent with errors that leave part of the body unread."""


class ServiceMiddleware:
    """The outermost layer of a service's app."""

    def __init__(self, app: ASGIApp, service: str, settings: Settings) -> None:
        self.app = app
        self.service = service
        self.settings = settings
        self._in_flight = telemetry.IN_FLIGHT.labels(service)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request (or pass on anything that is none)."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        begun = time.perf_counter()
        sent = {name: value.decode("latin-1") for name, value in scope["headers"] if name in _HEADERS}
        fresh = telemetry.fresh_context(sent.get(b"x-request-id"), sent.get(b"traceparent"), self.service)
        call = _Call(scope, receive, send, self.settings, sent)
        self._in_flight.inc()
        with telemetry.bind(request_id=fresh.request_id, traceparent=fresh.traceparent, service=self.service):
            try:
                await self._answer(call)
            finally:
                self._in_flight.dec()
                call.close()
                self._count(scope, call, time.perf_counter() - begun)

    async def _answer(self, call: _Call) -> None:
        try:
            call.check_size()
            await self.app(call.scope, call.receive, call.send)
            if call.refused is not None and not call.status:
                raise call.refused  # noqa: TRY301  # the app answered with its own words for it
        except Exception as error:
            if call.status:  # too late to say anything: break off, so that the caller sees that it is not whole
                raise
            told = translate(call.refused or error)
            self._note(told)
            headers = {**getattr(told, "headers", {}), **({} if call.complete else _CLOSE)}
            call.refused = None
            await render(call.scope, told, headers)(call.scope, call.receive, call.send)

    def _note(self, error: FoveaError) -> None:
        logger = telemetry.log()
        (logger.warning if error.status >= 500 else logger.info)(
            "refused", status=error.status, code=error.code, detail=error.detail
        )

    def _count(self, scope: Scope, call: _Call, seconds: float) -> None:
        route = getattr(scope.get("route"), "path", "unmatched")
        model = scope.get("fovea.model", "")
        _requests(self.service, model, route, call.status).inc()
        _latency(self.service, route).observe(seconds)
        if call.status >= 400:
            telemetry.ERRORS.labels(self.service, model, scope.get("fovea.error", call.status)).inc()


_requests = cache(telemetry.REQUESTS.labels)
_latency = cache(telemetry.REQUEST_LATENCY.labels)


class _Call:
    """One request: its receive and send with limits around them."""

    def __init__(
        self, scope: Scope, receive: Receive, send: Send, settings: Settings, sent: Mapping[bytes, str]
    ) -> None:
        self.scope = scope
        self.status = 0
        self.complete = False  # whether the whole body has been read
        self.refused: FoveaError | None = None
        self._receive = receive
        self._send = send
        self._settings = settings
        self._length = int(sent.get(b"content-length", "0"))
        self._read = 0
        self._gone: asyncio.Task[Message] | None = None
        self._alarm: asyncio.TimerHandle | None = None
        self.watched = "fovea.run" not in scope
        if self.watched:
            scope["fovea.run"] = CallContext(
                deadline=time.monotonic() + _seconds(sent.get(b"x-fovea-deadline-ms"), settings)
            )

    def check_size(self) -> None:
        """Refuse a body that says that it is too long, before reading any of it."""
        if self._length > self._settings.max_body_bytes:
            raise self._too_large(self._length)

    async def receive(self) -> Message:
        """The next piece of the body; after the last, the caller's going away."""
        if self.refused is not None:
            raise self.refused
        if self.complete:
            return await asyncio.shield(self._watch())
        try:
            async with asyncio.timeout(self._settings.body_read_timeout_s):
                message = await self._receive()
        except TimeoutError as error:
            pause = self._settings.body_read_timeout_s
            self.refused = TooSlow(f"The body stopped arriving for {pause:g} s.", hint="Send the whole request again.")
            raise self.refused from error
        self._read += len(message.get("body", b""))
        if self._read > self._settings.max_body_bytes and not self._is_endless():
            self.refused = self._too_large(self._read)
            raise self.refused
        if message["type"] == "http.disconnect":
            self.scope["fovea.run"].cancel()
        elif not message.get("more_body", False):
            self.complete = True
            if self.watched:
                self._alarm = asyncio.get_running_loop().call_later(_WATCH_AFTER_S, self._watch)
        return message

    def _is_endless(self) -> bool:
        """Whether the route that was found keeps nothing of its body."""
        return is_endless(getattr(self.scope.get("route"), "openapi_extra", None))

    async def send(self, message: Message) -> None:
        """Pass the answer on, with the request's id; an app's own words for what we refused are dropped."""
        if self.refused is not None:
            return
        if message["type"] == "http.response.start":
            self.status = message["status"]
            request_id = telemetry.context().request_id.encode("latin-1", "replace")
            message["headers"] = [*message.get("headers", ()), (b"x-request-id", request_id)]
        await self._send(message)

    def close(self) -> None:
        """Stop watching."""
        if self._alarm is not None:
            self._alarm.cancel()
        if self._gone is not None:
            self._gone.cancel()

    def _watch(self) -> asyncio.Task[Message]:
        """The one task that waits for the caller's going away, and cancels the run then."""
        if self._gone is None:
            self._gone = asyncio.ensure_future(self._await_gone())
        return self._gone

    async def _await_gone(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.disconnect":
            self.scope["fovea.run"].cancel()
        return message

    def _too_large(self, size: int) -> TooLarge:
        limit = self._settings.max_body_bytes
        return TooLarge(f"The body has {size:,} bytes or more; the limit is {limit:,}.", hint="Send less at a time.")


def _seconds(deadline_ms: str | None, settings: Settings) -> float:
    """Seconds the caller gives us; what is no number is as if it had not been sent."""
    try:
        seconds = float(deadline_ms or "") / 1000
    except ValueError:
        return settings.request_timeout_s
    return seconds if math.isfinite(seconds) else settings.request_timeout_s
