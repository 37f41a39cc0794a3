"""ASGI shell: what every front does around a request, once. The gateway and the services say how it is answered.

A front subclasses `Shell` and `HttpCall`: it opens a call, serves it, and turns what was raised into an answer. Its id,
trace, deadline, body limits, disconnect, metrics and spans are here and in the modules of this package.
"""

import asyncio
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import cache
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

from starlette.types import ASGIApp, Receive, Scope, Send

from shared import telemetry
from shared.asgi.body import BoundedBody, Message
from shared.settings import Settings
from shared.telemetry import Context, Span, fresh_context

FIRST_CHECK_S = 0.02
"""A request that is answered sooner is not watched at all, which saves a task."""

CHECK_INTERVAL_S = 0.1
"""Seconds between two checks whether the body has arrived; only then can a disconnect be received."""

_in_flight = cache(telemetry.IN_FLIGHT.labels)
_requests = cache(telemetry.REQUESTS.labels)
_latency = cache(telemetry.REQUEST_LATENCY.labels)


class ObservedRequest:
    """One request while it is served. The answering code fills the attributes; leaving the block records them.

    Attributes:
        trace: Request id and trace parent of the request.
        status: Status of the answer; 0 before it is sent.
        route: Template of the path, for metrics.
        model: Name of the model that answers, or empty.
        error: Code of the error that it was answered with, or empty.
        facts: Attributes of the span that are known at the end; those that are None are left out.
    """

    def __init__(self, service: str, method: str, path: str, trace: Context) -> None:
        self._service, self._method, self._path = service, method, path
        self._started = time.perf_counter()
        self._span: Span = telemetry.NO_SPAN
        self.trace = trace
        self.status = 0
        self.route = "unmatched"
        self.model = self.error = ""
        self.facts: dict[str, Any] = {}

    @property
    def seconds(self) -> float:
        """Seconds since it began."""
        return time.perf_counter() - self._started

    @property
    def traceparent(self) -> str:
        """Trace parent of what is called from here: of the request's own span, where there is one."""
        return self._span.traceparent or self.trace.traceparent

    @property
    def is_recorded(self) -> bool:
        """Whether facts are of use."""
        return self._span.is_recording

    def __enter__(self) -> Self:
        _in_flight(self._service).inc()
        trace = self.trace
        self._bound = telemetry.bind(request_id=trace.request_id, traceparent=trace.traceparent, service=self._service)
        self._bound.__enter__()
        self._span = telemetry.begin_http_span(self._method, self._path, trace.parent, trace.request_id)
        self._span.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _in_flight(self._service).dec()
        _requests(self._service, self.model, self.route, str(self.status)).inc()
        telemetry.observe(_latency(self._service, self.route), self.seconds)
        if self.error:
            telemetry.ERRORS.labels(self._service, self.model, self.error).inc()
        if self._span.is_recording:
            telemetry.finish_http_span(self._span, self._method, self.route, self.status)
            self._span.set_attributes(self.facts)
        self._span.__exit__(kind, error, trace)
        self._bound.__exit__()


class DisconnectWatch:
    """Calls `on_gone` once when the caller of a request hangs up after all of its body has arrived."""

    __slots__ = ("_body", "_listener", "_loop", "_on_gone", "_receive", "_timer")

    def __init__(self, receive: Receive, body: BoundedBody, on_gone: Callable[[], None]) -> None:
        self._receive, self._body, self._on_gone = receive, body, on_gone
        self._loop = asyncio.get_running_loop()
        self._listener: asyncio.Task[Message] | None = None
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Watch, unless the request is over in a moment."""
        self._timer = self._loop.call_later(FIRST_CHECK_S, self._check_body)

    def stop(self) -> None:
        """Watch no more."""
        if self._timer is not None:
            self._timer.cancel()
        if self._listener is not None:
            self._listener.cancel()

    async def wait(self) -> Message:
        """Return the disconnect."""
        return await asyncio.shield(self._listen())

    def _check_body(self) -> None:
        if self._body.complete:
            self._listen()
        else:
            self._timer = self._loop.call_later(CHECK_INTERVAL_S, self._check_body)

    def _listen(self) -> asyncio.Task[Message]:
        if self._listener is None:
            self._listener = self._loop.create_task(self._wait_for_disconnect())
        return self._listener

    async def _wait_for_disconnect(self) -> Message:
        while (message := await self._receive())["type"] != "http.disconnect":
            pass
        self._on_gone()
        return message


class HttpCall:
    """One HTTP request on its way through a front.

    Attributes:
        scope: ASGI's; `path` is the decoded path, `method` the HTTP method.
        headers: Headers by lower-case name; of a repeated one the last.
        trace: Request id and trace parent; `id` is the request id.
        observed: Its span and metrics.
        deadline: Event-loop time at which the caller stops waiting: of a stream, for its next piece.
        ends_at: Event-loop time at which a stream ends, however lively; infinite for none.
        tenant: The caller's tenant.
        usage: Its consumption, by name.
        body: Its body as it arrives.
        watch: Notices a caller that hangs up.
        on_cancel: Called once when the caller hangs up.
    """

    def __init__(self, service: str, scope: Scope, receive: Receive, send: Send, settings: Settings) -> None:
        self.scope = scope
        self.path: str = scope["path"]
        self.method: str = scope["method"]
        self.headers: dict[bytes, bytes] = dict(scope["headers"])
        self.trace = _trace(self.headers, service)
        self.id = self.trace.request_id
        self.observed = ObservedRequest(service, self.method, self.path, self.trace)
        now = asyncio.get_running_loop().time()
        self.deadline = now + settings.request_timeout_s
        self.ends_at = now + (settings.stream_timeout_s or math.inf)
        self.tenant = "local"
        self.usage: dict[str, float] = {}
        self.body = BoundedBody(receive, limit=settings.max_body_bytes, pause_s=settings.body_read_timeout_s)
        self.watch = DisconnectWatch(receive, self.body, self.cancel)
        self.on_cancel: Callable[[], Any] | None = None
        self._send = send

    @property
    def status(self) -> int:
        """Status of the answer; 0 before it is sent."""
        return self.observed.status

    @status.setter
    def status(self, status: int) -> None:
        self.observed.status = status

    @property
    def left_s(self) -> float:
        """Seconds until the deadline."""
        return self.deadline - asyncio.get_running_loop().time()

    def cancel(self) -> None:
        """Stop the work: the caller went away."""
        if self.on_cancel is not None:
            self.on_cancel()

    async def send(self, message: Message) -> None:
        """Send a part of the answer."""
        if message["type"] == "http.response.start":
            self.observed.status = message["status"]
        await self._send(message)


AnyCall = TypeVar("AnyCall", bound=HttpCall)


class Shell(ABC, Generic[AnyCall]):
    """The outermost layer of a front's app."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one HTTP request; pass anything else on."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        call = self.open(scope, receive, send)
        with call.observed:
            try:
                await self.serve(call)
            except Exception as error:  # noqa: BLE001  # whatever is raised becomes an answer
                await self.refuse(call, error)
            finally:
                call.watch.stop()
                self.close(call)

    @abstractmethod
    def open(self, scope: Scope, receive: Receive, send: Send) -> AnyCall:
        """Begin a call."""

    @abstractmethod
    async def serve(self, call: AnyCall) -> None:
        """Answer a call."""

    @abstractmethod
    async def refuse(self, call: AnyCall, error: Exception) -> None:
        """Answer a call with what was raised while it was served; raise it where that is too late."""

    @abstractmethod
    def close(self, call: AnyCall) -> None:
        """Complete what is observed of a call that is over."""


def _trace(headers: dict[bytes, bytes], service: str) -> Context:
    request_id, traceparent = headers.get(b"x-request-id"), headers.get(b"traceparent")
    return fresh_context(
        request_id.decode("latin-1") if request_id and request_id.isascii() else None,
        traceparent.decode("latin-1") if traceparent else None,
        service,
    )
