"""Errors as HTTP answers: one error, in the form that callers of a route expect.

RFC 9457 everywhere, except where a protocol demands its own form: Open Inference, OpenAI and Anthropic.
"""

import json
import math
from typing import Any, Literal

from fovea.api.problem import PROBLEM_CONTENT_TYPE, anthropic_error, oip_error, openai_error, problem
from fovea.errors import FoveaError, MethodNotAllowed

ErrorForm = Literal["problem", "openai", "anthropic", "oip"]
RawHeaders = list[tuple[bytes, bytes]]


def render_error(error: FoveaError, form: ErrorForm, request_id: str) -> tuple[int, str, bytes]:
    """Render status, content type and body of an error; only problems have a 422, the others have a 400."""
    status = 400 if form != "problem" and error.status == 422 else error.status
    body: Any
    if form == "oip":
        body = oip_error(error)
    elif form in {"openai", "anthropic"}:
        body = (openai_error if form == "openai" else anthropic_error)(error, request_id)
    else:
        body = problem(error, request_id).model_dump(exclude_none=True)
    return status, PROBLEM_CONTENT_TYPE if form == "problem" else "application/json", json.dumps(body).encode()


def build_error_headers(error: FoveaError) -> RawHeaders:
    """Build the headers of an error: when to retry, how to authenticate, which methods are allowed."""
    headers: RawHeaders = []
    if error.retry_after is not None:
        headers.append((b"retry-after", str(math.ceil(error.retry_after)).encode()))
    if isinstance(error, MethodNotAllowed) and error.allowed:
        headers.append((b"allow", ", ".join(error.allowed).encode()))
    if error.status == 401:
        headers.append((b"www-authenticate", b'Bearer realm="fovea"'))
    return headers
