"""Response relay: passes a replica's answer on to the caller, whole where it is small, streamed where it is not.

Knows nothing about which replica answered and whether another could.
"""

import asyncio
import contextlib
import json

import aiohttp

from fovea.api.replica import AUDIT_HEADER
from fovea.api.usage import USAGE_HEADER, UsageScanner, find_model, read_header
from fovea.errors import Fault, FoveaError
from services.gateway.http.errors import add_security_headers, find_error_format
from services.gateway.http.request_context import RequestContext, build_response_headers
from shared.asgi.errors import render_error
from shared.telemetry import log

MAX_BUFFERED_BYTES = 8 * 2**20
"""Answers that declare at most this many bytes are read whole before a byte is passed on, so a loss can be retried."""

LAST_EVENT_TIMEOUT_S = 1.0
"""Longest wait for a caller to take the last event; one that does not read would block for ever."""


async def relay_response(ctx: RequestContext, response: aiohttp.ClientResponse) -> None:
    """Send an answer on, and note in `ctx` that it has begun.

    Raises aiohttp.ClientError: the replica broke off; nothing was sent if `ctx.status` is still 0.
    """
    length = response.content_length
    if length is not None and length <= MAX_BUFFERED_BYTES:
        whole = await response.read()
        await _send_start(ctx, response)
        await ctx.send({"type": "http.response.body", "body": _scan(ctx, whole)})
        return
    chunk = await response.content.readany()
    await _send_start(ctx, response)
    while chunk:
        await ctx.send({"type": "http.response.body", "body": _scan(ctx, chunk), "more_body": True})
        ctx.extend()
        chunk = await response.content.readany()
    await ctx.send({"type": "http.response.body", "body": b""})


async def abort_response(ctx: RequestContext, error: FoveaError | None = None) -> None:
    """End an answer that can't be finished.

    An event stream ends with an error event in the form of its route family. For anything else the connection is
    closed early, which every client reports: the server does so for an answer that was begun and not completed.
    """
    log().warning("an answer broke off", request_id=ctx.trace.request_id, path=ctx.path)
    if ctx.streams_events:
        error = error or Fault("The answer broke off: its replica was lost.", hint="Send the request again.")
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LAST_EVENT_TIMEOUT_S):
                await ctx.send({"type": "http.response.body", "body": format_error_event(ctx, error)})


def format_error_event(ctx: RequestContext, error: FoveaError) -> bytes:
    """The last event of a stream that an error ends."""
    body = json.loads(render_error(error, find_error_format(ctx.path), ctx.trace.request_id)[2])
    event = body if "error" in body else {"error": body}
    name = b"event: error\n" if body.get("type") == "error" else b""
    return b"%bdata: %b\n\n" % (name, json.dumps(event).encode())


def _read_audit(text: str | None) -> dict[str, str]:
    with contextlib.suppress(ValueError, AttributeError):  # not JSON, or not an object
        return {str(k): str(v)[:500] for k, v in json.loads(text or "{}").items()}
    return {}


def _scan(ctx: RequestContext, chunk: bytes) -> bytes:
    """Note what a chunk says; returns what the caller gets of it."""
    if ctx.scanner is not None:
        chunk = ctx.scanner.feed(chunk)
    if ctx.recorder is not None:
        ctx.recorder.feed(chunk)
    return chunk


async def _send_start(ctx: RequestContext, response: aiohttp.ClientResponse) -> None:
    headers = add_security_headers([*build_response_headers(response.raw_headers), *ctx.extra_headers])
    ctx.streams_events = response.content_type == "text/event-stream"
    if ctx.recorder is not None:
        ctx.recorder.content_type = response.content_type
    told = response.headers.get(USAGE_HEADER, "")
    ctx.usage, ctx.told_model = read_header(told), find_model(told.encode())
    ctx.audit = _read_audit(response.headers.get(AUDIT_HEADER))
    if ctx.streams_events or response.content_type == "application/json":
        ctx.scanner = UsageScanner(is_stream=ctx.streams_events, told=ctx.usage)
    await ctx.send({"type": "http.response.start", "status": response.status, "headers": headers})
