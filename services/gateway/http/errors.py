"""How the gateway itself answers: one error, in the form that the callers of a route family expect.

Under `/v2` that is Open Inference's `{"error": …}`, on OpenAI's routes OpenAI's body, everywhere else RFC 9457.
Knows nothing about how requests are routed or checked.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from typing import Any, Literal

from shared.api.problem import PROBLEM_CONTENT_TYPE, oip_error, openai_error, problem
from shared.errors import BadInput, FoveaError

__all__ = [
    "PAGE_HEADERS",
    "SECURITY_HEADERS",
    "ErrorFormat",
    "MethodNotAllowed",
    "SlowBody",
    "add_security_headers",
    "find_error_format",
    "render_error",
    "send_error",
]

ErrorFormat = Literal["oip", "openai", "problem"]
RawHeaders = list[tuple[bytes, bytes]]

SECURITY_HEADERS: tuple[tuple[bytes, bytes], ...] = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-frame-options", b"DENY"),
    (b"cross-origin-resource-policy", b"same-origin"),
)
"""On every answer."""

_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)

PAGE_HEADERS: tuple[tuple[bytes, bytes], ...] = ((b"content-security-policy", _POLICY.encode()),)
"""On HTML answers, beside the security headers."""

_OPENAI = (
    "/v1/chat",
    "/v1/completions",
    "/v1/models",
    "/v1/embeddings",
    "/v1/responses",
    "/v1/documents",
    "/v1/sessions",
    "/tokenize",
    "/detokenize",
)


def add_security_headers(headers: RawHeaders) -> RawHeaders:
    """The security headers that an answer with these headers still lacks; HTML gets a policy for its content too."""
    kind = next((value for name, value in headers if name == b"content-type"), b"")
    wanted = [*SECURITY_HEADERS, *PAGE_HEADERS] if kind.startswith(b"text/html") else SECURITY_HEADERS
    there = {name for name, _ in headers}
    return [header for header in wanted if header[0] not in there]


class MethodNotAllowed(BadInput):
    """The route is there, but not for this method; the detail lists those there are."""

    status, grpc, title = 405, "UNIMPLEMENTED", "Method not allowed"

    def __init__(self, path: str, allowed: tuple[str, ...]) -> None:
        super().__init__(f"{path} takes {', '.join(allowed)}.")
        self.allowed = allowed


class SlowBody(BadInput):
    """The caller stopped sending its body for longer than we wait."""

    status, grpc, title = 408, "DEADLINE_EXCEEDED", "Request timeout"


def find_error_format(path: str) -> ErrorFormat:
    """The error form that callers of `path` expect."""
    if path.startswith("/v2"):
        return "oip"
    for prefix in _OPENAI:
        if path.startswith(prefix) and path[len(prefix) : len(prefix) + 1] in {"", "/"}:
            return "openai"
    return "problem"


def render_error(error: FoveaError, form: ErrorFormat, request_id: str) -> tuple[int, str, bytes]:
    """Status, content type and body of an error; Open Inference and OpenAI know no 422, so theirs is 400."""
    status = 400 if form != "problem" and error.status == 422 else error.status
    body: Any
    if form == "oip":
        body = oip_error(error)
    elif form == "openai":
        body = openai_error(error, request_id)
    else:
        body = problem(error, request_id).model_dump(exclude_none=True)
    return status, PROBLEM_CONTENT_TYPE if form == "problem" else "application/json", json.dumps(body).encode()


def build_error_headers(error: FoveaError) -> RawHeaders:
    """Headers that belong to an error: when to come back, how to log in, what to do instead."""
    headers: RawHeaders = []
    if error.retry_after is not None:
        headers.append((b"retry-after", str(math.ceil(error.retry_after)).encode()))
    if isinstance(error, MethodNotAllowed):
        headers.append((b"allow", ", ".join(error.allowed).encode()))
    if error.status == 401:
        headers.append((b"www-authenticate", b'Bearer realm="fovea"'))
    return headers


async def send_error(
    send: Any, error: FoveaError, path: str, request_id: str, extra: Iterable[tuple[bytes, bytes]] = ()
) -> int:
    """Answer with an error; returns the status sent. The body is left open when the connection is to be closed.

    An answer that carries `connection: close` may come while the caller is still sending. Its last (empty) piece is
    then left to the caller of this function, who may first read on for a while so that the answer is not lost.
    """
    status, content_type, body = render_error(error, find_error_format(path), request_id)
    headers: RawHeaders = [
        (b"content-type", content_type.encode()),
        (b"content-length", str(len(body)).encode()),
        *build_error_headers(error),
        *SECURITY_HEADERS,
        *extra,
    ]
    closing = (b"connection", b"close") in headers
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": closing})
    return status
