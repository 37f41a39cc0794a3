"""Passes a replica's answer on to the caller, whole where it is small, piece by piece where it is not.

Knows nothing about which replica answered and whether another could.
"""

from __future__ import annotations

import asyncio
import contextlib
import json

import aiohttp

from services.gateway.http.errors import add_security_headers, find_error_format, render_error
from services.gateway.http.request_context import RequestContext, build_response_headers
from shared.errors import Fault
from shared.telemetry import log

__all__ = ["abort_response", "relay_response"]

MAX_BUFFERED_BYTES = 8 * 2**20
"""Answers that state at most this many bytes are read whole before a byte is passed on, so that they can be retried."""


LAST_EVENT_TIMEOUT_S = 1.0
"""Longest wait for a caller to take the last event; one that does not read would hold us for ever."""


async def relay_response(exchange: RequestContext, response: aiohttp.ClientResponse) -> None:
    """Send an answer on, and note in the exchange that it has begun.

    Raises:
        aiohttp.ClientError: The replica broke off; nothing was sent if `exchange.status` is still 0.
    """
    length = response.content_length
    if length is not None and length <= MAX_BUFFERED_BYTES:
        whole = await response.read()
        await _start(exchange, response)
        await exchange.send({"type": "http.response.body", "body": whole})
        return
    piece = await response.content.readany()
    await _start(exchange, response)
    while piece:
        await exchange.send({"type": "http.response.body", "body": piece, "more_body": True})
        piece = await response.content.readany()
    await exchange.send({"type": "http.response.body", "body": b""})


async def abort_response(exchange: RequestContext) -> None:
    """End an answer that can't be finished.

    An event stream ends with an error event in the form of its route family. Of anything else the connection closes
    early, which every client reports: the server does that for an answer that was begun and not completed.
    """
    log().warning("an answer broke off", request_id=exchange.context.request_id, path=exchange.path)
    if exchange.streams_events:
        error = Fault("The answer broke off: its replica was lost, or the deadline passed.", hint="Send it again.")
        body = json.loads(render_error(error, find_error_format(exchange.path), exchange.context.request_id)[2])
        event = body if "error" in body else {"error": body}
        message = {"type": "http.response.body", "body": b"data: %b\n\n" % json.dumps(event).encode()}
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LAST_EVENT_TIMEOUT_S):
                await exchange.send(message)


async def _start(exchange: RequestContext, response: aiohttp.ClientResponse) -> None:
    exchange.status = response.status
    headers = [*build_response_headers(response.raw_headers), *exchange.extra]
    headers += add_security_headers(headers)
    exchange.streams_events = response.content_type == "text/event-stream"
    await exchange.send({"type": "http.response.start", "status": response.status, "headers": headers})
