"""All request models of the services: those of typed routes and of every model that a task route serves."""

from collections.abc import Iterator
from typing import Any

from fastapi.routing import APIRoute
from pydantic import BaseModel

from shared.registry.discovery import SERVICES
from shared.serving.replica import load_app


def list_request_models() -> dict[str, type[BaseModel]]:
    """Name → model; each once, however many routes take it."""
    found: dict[str, type[BaseModel]] = {}
    for service in SERVICES:
        app = load_app(service)
        host = app.state.host
        typed = [route.body_field.field_info.annotation for route in _walk(app.routes) if route.body_field]
        kinds = [kind for kind in (*typed, *(host.servable_type(name).In for name in host.names())) if _is_model(kind)]
        found |= {f"{kind.__module__}.{kind.__qualname__}": kind for kind in kinds}
    return found


def _walk(routes: Any) -> Iterator[APIRoute]:
    for route in routes:
        if isinstance(route, APIRoute):
            yield route
        elif (inner := getattr(route, "original_router", None)) is not None:
            yield from _walk(inner.routes)


def _is_model(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)
