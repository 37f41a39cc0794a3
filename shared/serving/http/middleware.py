"""Service middleware: request ids, trace, body limits, the CallContext, metrics, and errors turned into responses.

Pure ASGI, one class, because it lies on the hot path. Routes put the model's name into `scope["fovea.model"]` for the
metrics. `scope["fovea.run"]` is the request's CallContext, made here unless a job brought one; a request with
`scope["fovea.is_probe"]` is not traced. Of a route with the mark `ENDLESS` (`shared.api.replica`) only a stated length
counts against the limit.
"""

from __future__ import annotations

import asyncio
import json
import math
import time
import zlib
from collections.abc import Mapping
from functools import cache
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from shared import telemetry
from shared.api.replica import AUDIT_HEADER, SCOPES_HEADER, is_endless
from shared.api.usage import USAGE_HEADER
from shared.errors import FoveaError, Malformed, TooLarge, UnsupportedMedia
from shared.registry import CallContext
from shared.serving.http.error_rendering import render, translate
from shared.serving.http.errors import TooSlow
from shared.serving.http.json_bounds import PartsCounter
from shared.serving.watched_work import CURRENT_RUN
from shared.settings import Settings

_WATCH_DISCONNECT_AFTER_S = 0.05
"""Requests that take longer than this are watched for a disconnect."""

_REQUEST_HEADERS = (
    b"x-request-id",
    b"traceparent",
    b"x-fovea-deadline-ms",
    b"x-fovea-tenant",
    SCOPES_HEADER.encode(),
    b"content-length",
    b"content-encoding",
    b"content-type",
)

_WINDOW_BITS = {"gzip": 31, "deflate": 15}
"""Content codings that are inflated, and how zlib is told which."""

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
        """Serve one HTTP request; pass anything else on."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = time.perf_counter()
        headers = {name: value.decode("latin-1") for name, value in scope["headers"] if name in _REQUEST_HEADERS}
        context = telemetry.fresh_context(headers.get(b"x-request-id"), headers.get(b"traceparent"), self.service)
        call = _Call(scope, receive, send, self.settings, headers)
        CURRENT_RUN.set(scope["fovea.run"])
        self._in_flight.inc()
        server = telemetry.NO_SPAN
        if "fovea.is_probe" not in scope:
            server = telemetry.begin_http_span(scope["method"], scope["path"], context.parent, context.request_id)
        with (
            telemetry.bind(request_id=context.request_id, traceparent=context.traceparent, service=self.service),
            server,
        ):
            try:
                await self._answer(call)
            finally:
                self._in_flight.dec()
                call.close()
                self._count(scope, call, time.perf_counter() - started)
                self._finish_span(server, scope, call)

    async def _answer(self, call: _Call) -> None:
        try:
            call.check_size()
            await self.app(call.scope, call.receive, call.send)
            if call.refused is not None and not call.status:
                raise call.refused  # noqa: TRY301  # the app rendered an error of its own for it
        except Exception as error:
            if call.status:  # too late for an error: break off, so that the caller sees a truncated response
                raise
            failure = translate(call.refused or error)
            self._log(failure)
            headers = {**getattr(failure, "headers", {}), **({} if call.complete else _CLOSE)}
            call.refused = None
            await render(call.scope, failure, headers)(call.scope, call.receive, call.send)

    def _log(self, error: FoveaError) -> None:
        logger = telemetry.log()
        (logger.warning if error.status >= 500 else logger.info)(
            "refused", status=error.status, code=error.code, detail=error.detail
        )

    def _count(self, scope: Scope, call: _Call, seconds: float) -> None:
        route = getattr(scope.get("route"), "path", "unmatched")
        model = scope.get("fovea.model", "")
        _requests(self.service, model, route, call.status).inc()
        telemetry.observe(_latency(self.service, route), seconds)
        if call.status >= 400:
            telemetry.ERRORS.labels(self.service, model, scope.get("fovea.error", call.status)).inc()

    def _finish_span(self, server: telemetry.Span, scope: Scope, call: _Call) -> None:
        if server.is_recording:
            route = getattr(scope.get("route"), "path", "unmatched")
            telemetry.finish_http_span(server, scope["method"], route, call.status)
            run = scope["fovea.run"]
            server.set_attributes({"fovea.model": scope.get("fovea.model"), "fovea.tenant": run.tenant})
            server.set_attributes({f"fovea.usage.{name}": value for name, value in run.usage.items()})


_requests = cache(telemetry.REQUESTS.labels)
_latency = cache(telemetry.REQUEST_LATENCY.labels)


class _Call:
    """One request: its receive and send with limits around them."""

    def __init__(
        self, scope: Scope, receive: Receive, send: Send, settings: Settings, headers: Mapping[bytes, str]
    ) -> None:
        self.scope = scope
        self.status = 0
        self.complete = False  # whether the whole body has been read
        self.refused: FoveaError | None = None
        self._receive = receive
        self._send = send
        self._settings = settings
        self._length = int(headers.get(b"content-length", "0"))
        self._read = 0
        self._disconnect: asyncio.Task[Message] | None = None
        self._watch_timer: asyncio.TimerHandle | None = None
        self.has_own_context = "fovea.run" not in scope
        if self.has_own_context:
            scope["fovea.run"] = CallContext(
                deadline=time.monotonic() + _timeout_seconds(headers.get(b"x-fovea-deadline-ms"), settings),
                tenant=headers.get(b"x-fovea-tenant", "local"),
            )
        if (scopes := headers.get(SCOPES_HEADER.encode())) is not None:
            scope["fovea.run"].scopes = frozenset(scopes.split(","))
        if not (settings.prefix_cache_shared or scope["fovea.run"].cache_salt):
            scope["fovea.run"].cache_salt = headers.get(b"x-fovea-tenant", "local")
        self._coding = headers.get(b"content-encoding", "identity").strip().lower()
        self._inflater: Any = None
        self._parts = PartsCounter(scope["path"], headers.get(b"content-type", ""))
        # Open Inference inflates its own bodies, and answers in kind.
        if self._coding not in {"identity", ""} and not scope["path"].startswith("/v2"):
            self._inflater = zlib.decompressobj(_WINDOW_BITS.get(self._coding, 0))
            dropped = (b"content-encoding", b"content-length")
            scope["headers"] = [(name, value) for name, value in scope["headers"] if name not in dropped]

    def check_size(self) -> None:
        """Refuse a body whose stated length is too large, before reading any of it."""
        if self._length > self._settings.max_body_bytes:
            raise self._too_large(self._length)
        if self._inflater is not None and self._coding not in _WINDOW_BITS:
            detail = f"The content encoding {self._coding[:40]!r} is not read here."
            raise UnsupportedMedia(detail, hint="Known are gzip and deflate.")

    async def receive(self) -> Message:
        """The next chunk of the body; after the last, the disconnect."""
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
        if self._inflater is not None and message.get("body"):
            message = {**message, "body": await self._inflate(message["body"])}
        self._read += len(message.get("body", b""))
        if self._read > self._settings.max_body_bytes and not self._is_endless():
            self.refused = self._too_large(self._read)
            raise self.refused
        self._count_parts(message.get("body", b""))
        if message["type"] == "http.disconnect":
            self.scope["fovea.run"].cancel()
        elif not message.get("more_body", False):
            self.complete = True
            if self.has_own_context:
                self._watch_timer = asyncio.get_running_loop().call_later(_WATCH_DISCONNECT_AFTER_S, self._watch)
        return message

    def _count_parts(self, chunk: bytes) -> None:
        try:
            self._parts.feed(chunk)
        except TooLarge as error:
            self.refused = error
            raise

    async def _inflate(self, chunk: bytes) -> bytes:
        """The next part of a compressed body, up to one byte more than is allowed in all."""
        left = max(self._settings.max_body_bytes - self._read, 0) + 1
        try:
            return bytes(await asyncio.to_thread(self._inflater.decompress, chunk, left))
        except zlib.error as error:
            self.refused = Malformed(f"The body is not {self._coding}: {error}.")
            raise self.refused from error

    def _is_endless(self) -> bool:
        """Whether the route that was found keeps nothing of its body."""
        return is_endless(getattr(self.scope.get("route"), "openapi_extra", None))

    async def send(self, message: Message) -> None:
        """Pass the response on, with the request's id; the app's own error for a refused body is dropped."""
        if self.refused is not None:
            return
        if message["type"] == "http.response.start":
            self.status = message["status"]
            request_id = telemetry.context().request_id.encode("latin-1", "replace")
            message["headers"] = [*message.get("headers", ()), (b"x-request-id", request_id)]
            for name, facts in (
                (USAGE_HEADER, self.scope["fovea.run"].usage),
                (AUDIT_HEADER, self.scope["fovea.run"].audit),
            ):
                if facts:
                    message["headers"].append((name.encode(), json.dumps(facts).encode()))
        await self._send(message)

    def close(self) -> None:
        """Stop watching."""
        if self._watch_timer is not None:
            self._watch_timer.cancel()
        if self._disconnect is not None:
            self._disconnect.cancel()

    def _watch(self) -> asyncio.Task[Message]:
        """The one task that waits for the disconnect, and cancels the call then."""
        if self._disconnect is None:
            self._disconnect = asyncio.ensure_future(self._await_disconnect())
        return self._disconnect

    async def _await_disconnect(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.disconnect":
            self.scope["fovea.run"].cancel()
        return message

    def _too_large(self, size: int) -> TooLarge:
        limit = self._settings.max_body_bytes
        return TooLarge(f"The body has {size:,} bytes or more; the limit is {limit:,}.", hint="Send less at a time.")


def _timeout_seconds(deadline_ms: str | None, settings: Settings) -> float:
    """Seconds that the caller allows; a value that is no number is ignored."""
    try:
        seconds = float(deadline_ms or "") / 1000
    except ValueError:
        return settings.request_timeout_s
    return seconds if math.isfinite(seconds) else settings.request_timeout_s
