"""Error responses of the gateway: one error, in the format that callers of a path expect.

Under `/v2` that is Open Inference's `{"error": …}`, on OpenAI's and Anthropic's routes their own, else RFC 9457.
Knows nothing about how requests are routed or checked.
"""

from collections.abc import Iterable
from typing import Any

from fovea.errors import FoveaError
from shared.asgi.errors import ErrorForm, RawHeaders, build_error_headers, render_error

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
"""On HTML answers, next to the security headers."""

_OPENAI_PATHS = (
    "/v1/chat", "/v1/completions", "/v1/models", "/v1/embeddings", "/v1/responses", "/v1/rerank", "/rerank",
    "/v2/rerank", "/v1/score", "/score", "/v1/files", "/v1/batches", "/v1/assistants", "/v1/audio", "/v1/conversations",
    "/v1/engines", "/v1/fine_tuning", "/v1/images", "/v1/moderations", "/v1/threads", "/v1/uploads",
    "/v1/vector_stores", "/v1/documents", "/v1/sessions", "/tokenize", "/detokenize", "/tokenizer_info",
)  # fmt: skip
_ANTHROPIC_PATH = "/v1/messages"


def add_security_headers(headers: RawHeaders) -> RawHeaders:
    """Add the security headers that are not there yet; HTML gets a content security policy too."""
    kind = next((value for name, value in headers if name == b"content-type"), b"")
    wanted = [*SECURITY_HEADERS, *PAGE_HEADERS] if kind.startswith(b"text/html") else SECURITY_HEADERS
    present = {name for name, _ in headers}
    return [*headers, *(header for header in wanted if header[0] not in present)]


def find_error_format(path: str) -> ErrorForm:
    """Find the error format that callers of `path` expect."""
    for prefix in _OPENAI_PATHS:
        if path.startswith(prefix) and path[len(prefix) : len(prefix) + 1] in {"", "/"}:
            return "openai"
    if path == _ANTHROPIC_PATH or path.startswith(f"{_ANTHROPIC_PATH}/"):
        return "anthropic"
    return "oip" if path.startswith("/v2") else "problem"


async def send_error(
    send: Any, error: FoveaError, path: str, request_id: str, extra: Iterable[tuple[bytes, bytes]] = ()
) -> int:
    """Answer with an error; returns the status. The body is left open when the connection is to be closed.

    An answer with `connection: close` may go out while the caller is still sending. Its last (empty) chunk is then left
    to the caller of this function, who may first read on for a while so that the answer is not lost.
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
