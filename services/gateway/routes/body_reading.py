"""Bodies of the gateway's own routes, read whole within the limits that proxied bodies have."""

from __future__ import annotations

import json
from typing import Any

from fastapi import Request

from services.gateway.routes.dependencies import get_context
from shared.errors import Malformed

__all__ = ["read_json", "read_whole_body"]


async def read_whole_body(request: Request) -> bytes:
    """The body.

    Raises:
        TooLarge: It outgrows the limit.
        SlowBody: It has not arrived by the deadline, or pauses too long.
    """
    ctx, proxy = get_context(request), request.app.state.gateway.proxy
    body = ctx.body = proxy.open_body(ctx)
    try:
        whole: bytes = await proxy.read_body(ctx, body)
    finally:
        body.release()
    return whole


async def read_json(request: Request) -> Any:
    """The body as JSON.

    Raises:
        Malformed: It is none.
    """
    try:
        return json.loads(await read_whole_body(request))
    except (ValueError, RecursionError) as error:
        raise Malformed("The body is not JSON.") from error
