"""Which of several services on one path is meant: the one that has the model which the request names.

Reads `model` from the query, a JSON body or a multipart form. Only paths that services share come here.
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

_FIELD = re.compile(rb'name="model"[^\r\n]*\r\n(?:[^\r\n]+\r\n)*\r\n([^\r\n]*)\r\n')


def resolve_service(exchange: RequestContext, route: Route, body: bytes, routing: RouteTable) -> Route:
    """The route with one service.

    Raises:
        NotFound: The named model is not one of theirs.
    """
    name = _model(exchange, body)
    if name is None:
        return replace(route, services=route.services[:1])
    service = routing.service_of(name)
    if service not in route.services:
        theirs = ", ".join(sorted(m for m, s in routing.models.items() if s in route.services))
        detail = f"{exchange.path} does not serve the model {name!r}."
        raise NotFound(detail, hint=f"It serves {theirs}.", field="model")
    return replace(route, services=(service,))


def _model(exchange: RequestContext, body: bytes) -> str | None:
    query: dict[str, list[str]] = parse_qs(exchange.scope["query_string"].decode("latin-1"))
    if named := query.get("model"):
        return named[0]
    kind = exchange.headers.get(b"content-type", b"").lower()
    if kind.startswith(b"multipart/"):
        found = _FIELD.search(body)
        return found[1].decode("utf-8", "replace") if found else None
    try:
        document: object = json.loads(body) if b"json" in kind else None
    except (ValueError, RecursionError):
        return None
    if isinstance(document, dict) and isinstance(document.get("model"), str):
        return str(document["model"])
    return None
