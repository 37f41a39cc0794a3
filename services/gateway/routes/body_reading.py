"""Bodies of the gateway's own routes, read whole within the limits that proxied bodies have."""

from __future__ import annotations

from typing import Any

from fastapi import Request

from services.gateway.http.bounded_json import parse_json_aside
from services.gateway.routes.dependencies import get_context


async def read_whole_body(request: Request) -> bytes:
    """The body.

    Raises TooLarge: it outgrows the limit; SlowBody: it has not arrived by the deadline, or pauses too long.
    """
    ctx, proxy = get_context(request), request.app.state.gateway.proxy
    body = proxy.open_body(ctx)
    try:
        whole: bytes = await proxy.read_body(ctx, body)
    finally:
        body.release()
    return whole


async def read_json(request: Request) -> Any:
    """The body as JSON. Raises Malformed: it is none; TooLarge: it outgrows the limit, or has too many parts."""
    return await parse_json_aside(await read_whole_body(request))
