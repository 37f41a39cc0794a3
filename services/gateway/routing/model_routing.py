"""Model routing: picks one of several services that share a path, by the model that the request names.

Reads `model` from the query, a JSON body or a multipart form.
"""

import asyncio
import json
import re
from dataclasses import replace
from urllib.parse import parse_qs

from fovea.errors import NotFound
from services.gateway.http.request_context import RequestContext
from services.gateway.routing.json_peek import read_json_field
from services.gateway.routing.route_table import Route, RouteTable

_FORM_FIELD = re.compile(rb'name="model"[^\r\n]{0,200}\r\n(?:[^\r\n]{1,200}\r\n){0,4}\r\n([^\r\n]{0,300})\r\n')
"""Bounded in each part, so that a body full of beginnings costs no more than its length."""

_PARSE_BYTES = 2**16
"""Bodies up to this size are parsed; of larger ones only what is needed is looked for."""


async def resolve_service(ctx: RequestContext, route: Route, body: bytes, routes: RouteTable) -> Route:
    """Narrow a route to the one service that has the named model; to the first where none is named.

    Raises Malformed: the body has too many parts to find the name; NotFound: none of these services has the model.
    """
    large = len(body) > _PARSE_BYTES
    name = await asyncio.to_thread(_read_model, ctx, body) if large else _read_model(ctx, body)
    if name is None:
        return replace(route, services=route.services[:1])
    service = routes.find_service(name)
    if service not in route.services:
        theirs = ", ".join(sorted(m for m, s in routes.models.items() if s in route.services))
        detail = f"{ctx.path} does not serve the model {name!r}."
        raise NotFound(detail, hint=f"It serves: {theirs}.", field="model")
    return replace(route, services=(service,))


def _read_model(ctx: RequestContext, body: bytes) -> str | None:
    query: dict[str, list[str]] = parse_qs(ctx.scope["query_string"].decode("latin-1"))
    if named := query.get("model"):
        return named[0]
    kind = ctx.headers.get(b"content-type", b"").lower()
    if kind.startswith(b"multipart/"):
        found = _FORM_FIELD.search(body)
        return found[1].decode("utf-8", "replace") if found else None
    if b"json" not in kind:
        return None
    return read_json_field(body, "model") if len(body) > _PARSE_BYTES else _read_json_model(body)


def _read_json_model(body: bytes) -> str | None:
    try:
        document: object = json.loads(body)
    except (ValueError, RecursionError):
        return None
    model = document.get("model") if isinstance(document, dict) else None
    return model if isinstance(model, str) else None
