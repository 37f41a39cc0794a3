"""ASGI shell: what every front does around a request, once. The gateway and the services say how it is answered.

A front subclasses `Shell` and `HttpCall`: it opens a call, serves it, and turns what was raised into an answer. Its id,
trace, deadline, body limits, disconnect, metrics and spans are here and in the modules of this package.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from starlette.types import ASGIApp, Receive, Scope, Send

from shared.asgi.body import BoundedBody, Message
from shared.asgi.disconnect import DisconnectWatch
from shared.asgi.observation import ObservedRequest
from shared.settings import Settings
from shared.telemetry import Context, fresh_context


class HttpCall:
    """One HTTP request on its way through a front.

    Attributes:
        scope: ASGI's.
        headers: Headers by lower-case name; of a repeated one the last.
        observed: Its span and metrics; holds request id and trace parent.
        deadline: Event-loop time at which the caller stops waiting.
        tenant: Who calls.
        usage: What it consumed, by name.
        body: Its body as it arrives.
        watch: Notices a caller that hangs up.
        on_cancel: Called once when the caller hangs up.
    """

    def __init__(self, service: str, scope: Scope, receive: Receive, send: Send, settings: Settings) -> None:
        self.scope = scope
        self.headers: dict[bytes, bytes] = dict(scope["headers"])
        self.observed = ObservedRequest(service, scope["method"], scope["path"], _trace(self.headers, service))
        self.deadline = asyncio.get_running_loop().time() + settings.request_timeout_s
        self.tenant = "local"
        self.usage: dict[str, float] = {}
        self.body = BoundedBody(receive, limit=settings.max_body_bytes, pause_s=settings.body_read_timeout_s)
        self.watch = DisconnectWatch(receive, self.body, self.cancel)
        self.on_cancel: Callable[[], Any] | None = None
        self._send = send

    @property
    def id(self) -> str:
        """Its request id."""
        return self.observed.trace.request_id

    @property
    def trace(self) -> Context:
        """Request id and trace parent."""
        return self.observed.trace

    @property
    def path(self) -> str:
        """The decoded path."""
        path: str = self.scope["path"]
        return path

    @property
    def method(self) -> str:
        """The HTTP method."""
        method: str = self.scope["method"]
        return method

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
