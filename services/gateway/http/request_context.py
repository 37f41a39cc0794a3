"""One request on its way through the gateway: who asks, for what, until when; and the headers that cross the gateway.

Knows nothing about upstreams, queues or pages.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from dataclasses import dataclass, field
from typing import Any

from multidict import CIMultiDict

from services.gateway.policy.auth import LOCAL, Caller
from services.gateway.proxy.replayable_body import Receive, ReplayableBody
from shared.errors import InvalidOption
from shared.telemetry import Context, fresh_context

__all__ = ["RequestContext", "Send", "build_request_headers", "build_response_headers"]

Scope = MutableMapping[str, Any]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

MAX_IGNORED_BODY_BYTES = 2**16
"""A refused body of at most this many bytes needs no hanging up."""

_HOP = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    }
)
"""Headers that concern one connection only (RFC 9110, 7.6.1)."""

_OURS = _HOP | {
    b"host",
    b"content-length",
    b"expect",
    b"authorization",
    b"x-api-key",
    b"x-request-id",
    b"traceparent",
    b"prefer",
    b"idempotency-key",
    b"cookie",
}
"""Request headers that we consume or write anew."""

_WRITTEN = _HOP | {b"server", b"date", b"x-request-id", b"x-content-type-options"}
"""Answer headers that we write ourselves."""


@dataclass(slots=True, eq=False)
class RequestContext:
    """One HTTP request and what we know about it.

    Attributes:
        deadline: Event-loop time at which the caller stops waiting.
        route: Label for metrics: a template, never the raw path.
        extra: Headers for the answer (rate limits).
        status: What was answered; 0 before.
        streams_events: Whether the answer is an event stream.
        body: The body, once somebody wants it.
        begun: When it arrived, `time.perf_counter()`.
        once: Idempotency key of a request that has none of its own: the same at every attempt.
        may_wait: Whether a replica may have it queued: then it is answered later, though nobody asked for that.
    """

    scope: Scope
    receive: Receive
    send: Send
    headers: dict[bytes, bytes]
    context: Context
    deadline: float
    caller: Caller = LOCAL
    route: str = "other"
    model: str = ""
    extra: list[tuple[bytes, bytes]] = field(default_factory=list)
    status: int = 0
    streams_events: bool = False
    body: ReplayableBody | None = None
    begun: float = field(default_factory=time.perf_counter)
    once: str = field(default_factory=lambda: f"{random.getrandbits(128):032x}")
    may_wait: bool = False

    @classmethod
    def of(cls, scope: Scope, receive: Receive, send: Send, deadline_s: float) -> RequestContext:
        """Begin an exchange that takes at most `deadline_s`."""
        headers = dict(scope["headers"])
        rid, trace = headers.get(b"x-request-id"), headers.get(b"traceparent")
        context = fresh_context(
            rid.decode("latin-1") if rid and rid.isascii() else None, trace.decode("latin-1") if trace else None, ""
        )
        exchange = cls(scope, receive, send, headers, context, asyncio.get_running_loop().time() + deadline_s)
        exchange.extra.append((b"x-request-id", context.request_id.encode()))
        return exchange

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
    def target(self) -> str:
        """Path and query as they came."""
        raw: bytes = self.scope.get("raw_path") or self.scope["path"].encode()
        query: bytes = self.scope["query_string"]
        return (raw + b"?" + query if query else raw).decode("latin-1")

    @property
    def left_s(self) -> float:
        """Seconds until the deadline."""
        return self.deadline - asyncio.get_running_loop().time()

    @property
    def unread(self) -> bool:
        """Whether the caller may still be sending more than a server swallows by the way."""
        if self.body is not None and (self.body.complete or self.body.fault is not None):
            return not self.body.complete
        length = self.headers.get(b"content-length", b"0")
        return b"transfer-encoding" in self.headers or not length.isdigit() or int(length) > MAX_IGNORED_BODY_BYTES

    def shorten(self) -> None:
        """Take over the caller's own deadline, which can only be shorter than ours.

        Raises:
            InvalidOption: It is no positive number of milliseconds.
        """
        text = self.headers.get(b"x-fovea-deadline-ms")
        if text is None:
            return
        if not text.isdigit() or len(text) > 12 or int(text) == 0:
            detail = "x-fovea-deadline-ms must be a positive whole number of milliseconds."
            raise InvalidOption(detail, field="x-fovea-deadline-ms")
        self.deadline = min(self.deadline, asyncio.get_running_loop().time() + int(text) / 1000)


def build_request_headers(exchange: RequestContext) -> CIMultiDict[str]:
    """What a replica gets: the caller's headers without hop-by-hop ones and credentials, then ours."""
    named = exchange.headers.get(b"connection")
    dropped = _OURS | {n.strip().lower() for n in named.split(b",")} if named else _OURS
    headers: CIMultiDict[str] = CIMultiDict(
        (name.decode("latin-1"), value.decode("latin-1"))
        for name, value in exchange.scope["headers"]
        if name not in dropped and not name.startswith(b"x-fovea-")
    )
    headers["x-request-id"] = exchange.context.request_id
    headers["traceparent"] = exchange.context.traceparent
    headers["x-fovea-tenant"] = exchange.caller.tenant
    key = exchange.headers.get(b"idempotency-key")
    headers["idempotency-key"] = exchange.once if key is None else key.decode("latin-1")
    return headers


def build_response_headers(raw: Iterable[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """What a caller gets of a replica's headers."""
    return [(name, value) for name, value in ((n.lower(), v) for n, v in raw) if name not in _WRITTEN]
