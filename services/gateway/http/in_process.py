"""In-process requests: what a page or a tool asks the gateway's own app for, with the key of whoever uses it.

So a page shows, and a tool does, what its user may, and no more. Knows nothing about routes.
"""

import json
from typing import Any

import httpx2
from starlette.requests import Request

from shared.telemetry import context

_FORWARDED_HEADERS = (b"host", b"authorization", b"x-api-key", b"traceparent", b"x-request-id")
"""Headers of the outer request that are passed on."""


async def send_in_process(
    request: Request, path: str, body: Any = None, *, deadline_s: float | None = None
) -> httpx2.Response:
    """Send a request to the app that serves `request`: a GET, or with a body a POST of JSON.

    With `deadline_s` it fails after so many seconds.
    """
    client = (request.client.host, request.client.port) if request.client else ("127.0.0.1", 0)
    headers = {name: value for name, value in request.scope["headers"] if name in _FORWARDED_HEADERS}
    if current := context().traceparent:
        headers[b"traceparent"] = current.encode()
    if deadline_s is not None:
        headers[b"x-fovea-deadline-ms"] = b"%d" % round(1000 * deadline_s)
    method, content = "GET", None
    if body is not None:
        headers |= {b"content-type": b"application/json", b"accept": b"application/json"}
        method, content = "POST", json.dumps(body).encode()
    inner = httpx2.Request(method, f"http://gateway/{path.lstrip('/')}", headers=headers, content=content)
    # The bare transport: a client around it would log a line for every request.
    async with httpx2.ASGITransport(app=request.app, client=client) as transport:
        response = await transport.handle_async_request(inner)
        await response.aread()
    return response
