"""Request context: one HTTP request on its way through the gateway, and the headers that cross the gateway.

Knows nothing about upstreams, queues or pages.
"""

import asyncio
import contextlib
import random
from collections.abc import Iterable
from dataclasses import dataclass, field

from multidict import CIMultiDict
from starlette.types import Receive, Scope, Send

from fovea.api.replica import AUDIT_HEADER, HOLDS_HEADER, SCOPES_HEADER
from fovea.api.usage import USAGE_HEADER, UsageScanner
from fovea.errors import InvalidOption, PermissionDenied
from services.gateway.policy.caller import LOCAL, Caller
from shared.asgi.shell import HttpCall
from shared.local_names import is_loopback, without_port
from shared.settings import Settings
from shared.telemetry import context

MAX_IGNORED_BODY_BYTES = 2**16
"""After refusing a body of at most this many bytes the connection stays open: the server reads the rest by itself."""

DEADLINE_GRACE_S = 1.0
"""How much longer than the deadline we wait, so that the replica's own answer about it comes first."""

_HOP_BY_HOP = frozenset(
    b"connection keep-alive proxy-authenticate proxy-authorization proxy-connection te trailer transfer-encoding "
    b"upgrade".split()
)
"""Headers that concern one connection only (RFC 9110, 7.6.1)."""

_REPLACED = _HOP_BY_HOP.union(
    b"host content-length expect authorization x-api-key x-request-id traceparent prefer idempotency-key cookie".split()
)
"""Request headers that the gateway consumes or writes itself."""

_OWN_RESPONSE_HEADERS = _HOP_BY_HOP.union(
    b"server date x-request-id x-content-type-options".split(),
    (name.encode() for name in (USAGE_HEADER, HOLDS_HEADER, AUDIT_HEADER)),
)
"""Response headers that the gateway writes itself."""


@dataclass(slots=True)
class AnswerRecorder:
    """Keeps a copy of an answer on its way to the caller, as long as it has at most `limit` bytes."""

    limit: int
    content_type: str = ""
    is_whole: bool = True
    size: int = 0
    chunks: list[bytes] = field(default_factory=list)

    def feed(self, chunk: bytes) -> None:
        """Keep a chunk; drop all of an answer that grows too large."""
        self.size += len(chunk)
        if self.size > self.limit:
            self.is_whole = False
            self.chunks = []
        elif self.is_whole:
            self.chunks.append(chunk)


class RequestContext(HttpCall):
    """One HTTP request and what is known about it.

    Attributes:
        receive: ASGI's.
        caller: The caller that sent it.
        route: Label for metrics: a template, never the raw path.
        model: Name of the model that answers, or empty.
        told_model: The same as its replica tells it.
        extra_headers: Headers for the answer (request id, rate limits).
        streams_events: Whether the answer is an event stream.
        timer: Ends the request after its deadline; None where it may take any time.
        generated_key: Idempotency key for a caller that sends none: the same at every attempt.
        audit: The replica's facts for the audit log.
        scanner: Collects the tokens of its answer.
        recorder: Keeps a copy of its answer, where somebody wants one.
        may_queue: Whether a replica may have it queued as a job, although the caller did not ask for one.
    """

    def __init__(self, scope: Scope, receive: Receive, send: Send, settings: Settings) -> None:
        super().__init__("gateway", scope, receive, send, settings)
        self.receive = receive
        self.caller: Caller = LOCAL
        self.route = "other"
        self.model = self.told_model = ""
        self.extra_headers: list[tuple[bytes, bytes]] = [(b"x-request-id", self.id.encode())]
        self.streams_events = False
        self.timer: asyncio.Timeout | None = None
        self._pause_s = settings.request_timeout_s
        self.generated_key = f"{random.getrandbits(128):032x}"
        self.may_queue = False
        self.audit: dict[str, str] = {}
        self.scanner: UsageScanner | None = None
        self.recorder: AnswerRecorder | None = None

    @property
    def traceparent(self) -> str:
        """Trace parent of what is called now: of the current span, where there is one."""
        return context().traceparent or self.observed.traceparent

    @property
    def raw_target(self) -> str:
        """Path and query as they were sent."""
        raw: bytes = self.scope.get("raw_path") or self.scope["path"].encode()
        query: bytes = self.scope["query_string"]
        return (raw + b"?" + query if query else raw).decode("latin-1")

    @property
    def has_unread_body(self) -> bool:
        """Whether the caller may still be sending more than the server reads by itself."""
        if self.body.complete or self.body.error is not None:
            return not self.body.complete
        length = self.headers.get(b"content-length", b"0")
        return b"transfer-encoding" in self.headers or not length.isdigit() or int(length) > MAX_IGNORED_BODY_BYTES

    def apply_caller_deadline(self) -> None:
        """Apply the caller's own deadline, which can only shorten the gateway's.

        Raises InvalidOption: it is not a positive number of milliseconds.
        """
        text = self.headers.get(b"x-fovea-deadline-ms")
        if text is None:
            return
        if not text.isdigit() or len(text) > 12 or int(text) == 0:
            detail = "x-fovea-deadline-ms must be a positive whole number of milliseconds."
            raise InvalidOption(detail, field="x-fovea-deadline-ms")
        until = asyncio.get_running_loop().time() + int(text) / 1000
        self.deadline, self.ends_at = min(self.deadline, until), min(self.ends_at, until)

    def extend(self) -> None:
        """Count the deadline anew: a piece of a streamed answer has just been passed on."""
        if self.timer is not None and not self.timer.expired():
            self.deadline = min(asyncio.get_running_loop().time() + self._pause_s, self.ends_at)
            self.timer.reschedule(self.deadline + DEADLINE_GRACE_S)


def build_request_headers(ctx: RequestContext) -> CIMultiDict[str]:
    """Build the headers for a replica: the caller's without hop-by-hop ones and credentials, then the gateway's."""
    named = ctx.headers.get(b"connection")
    dropped = _REPLACED | {n.strip().lower() for n in named.split(b",")} if named else _REPLACED
    headers: CIMultiDict[str] = CIMultiDict(
        (name.decode("latin-1"), _read_header(value))
        for name, value in ctx.scope["headers"]
        if name not in dropped and not name.startswith(b"x-fovea-")
    )
    headers["x-request-id"] = ctx.trace.request_id
    headers["traceparent"] = ctx.traceparent
    headers["x-fovea-tenant"] = ctx.caller.tenant
    headers[SCOPES_HEADER] = ctx.caller.scope_header
    key = ctx.headers.get(b"idempotency-key")
    headers["idempotency-key"] = ctx.generated_key if key is None else _read_header(key)
    return headers


def _read_header(value: bytes) -> str:
    """Text that the HTTP client, which writes UTF-8, sends as the same bytes; Latin-1 becomes UTF-8."""
    with contextlib.suppress(UnicodeDecodeError):
        return value.decode()
    return value.decode("latin-1")


def build_response_headers(raw: Iterable[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """Keep those of a replica's headers that the caller gets."""
    return [(name, value) for name, value in ((n.lower(), v) for n, v in raw) if name not in _OWN_RESPONSE_HEADERS]


def require_local_request(ctx: RequestContext, own: str) -> None:
    """Check that a request was not made by a foreign web page; the address `own` is a valid `Host`, too.

    A page of some web site can make a browser on this machine send requests to a loopback port. Two headers reveal it:
    a foreign `Host` (DNS rebinding) and a foreign `Origin`.

    Raises PermissionDenied: `Host` is not a loopback name, or `Origin` is another site and the request a change.
    """
    host = ctx.headers.get(b"host", b"localhost").decode("latin-1")
    name = without_port(host)
    if name != own and not is_loopback(name):
        detail = f"This gateway serves its own machine only, and {name[:100]!r} is not one of its names."
        raise PermissionDenied(detail, hint="Use http://127.0.0.1, or run with FOVEA_AUTH=keys.")
    origin = ctx.headers.get(b"origin")
    if origin is None or ctx.method in {"GET", "HEAD", "OPTIONS"}:
        return
    if origin.decode("latin-1").partition("://")[2] != host:
        detail = "The request was sent by a page of another site."
        raise PermissionDenied(detail, hint="Run with FOVEA_AUTH=keys to serve other sites.")
