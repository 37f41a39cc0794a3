"""Model routing: picks one of several services that share a path, by the model that the request names.

Reads `model` from the query, a JSON body or a multipart form.
"""

from __future__ import annotations

import json
import re
from dataclasses import replace
from urllib.parse import parse_qs

from services.gateway.http.request_context import RequestContext
from services.gateway.routing.route_table import Route, RouteTable
from shared.errors import NotFound

__all__ = ["resolve_service"]

_FORM_FIELD = re.compile(rb'name="model"[^\r\n]*\r\n(?:[^\r\n]+\r\n)*\r\n([^\r\n]*)\r\n')


def resolve_service(ctx: RequestContext, route: Route, body: bytes, routes: RouteTable) -> Route:
    """Narrow a route to the one service that has the named model; to the first where none is named.

    Raises:
        NotFound: None of these services has the named model.
    """
    name = _read_model(ctx, body)
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
    try:
        document: object = json.loads(body) if b"json" in kind else None
    except (ValueError, RecursionError):
        return None
    if isinstance(document, dict) and isinstance(document.get("model"), str):
        return str(document["model"])
    return None
