"""Open Inference v2 where it asks about the server and not about one model: answered for the whole fleet.

REST routes are here; the gRPC front takes the facts from the same functions. Knows nothing about tensors.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

from fastapi import APIRouter, Request

from services.gateway.http.openapi_errors import PROBLEMS
from services.gateway.http.request_context import RequestContext
from services.gateway.routes.health import is_ready
from shared.errors import Malformed, NotReady

__all__ = ["SERVER_METADATA", "list_repository", "router"]

SERVER_METADATA = {
    "name": "fovea",
    "version": "1",
    "extensions": ["binary_tensor_data", "model_repository", "statistics"],
}
"""Server metadata."""

_STATES = {"ready": "READY", "loading": "LOADING", "waiting": "LOADING"}

_READY_BODY = {
    "content": {"application/json": {"schema": {"type": "object", "properties": {"ready": {"type": "boolean"}}}}}
}

router = APIRouter(prefix="/v2", tags=["open inference"], responses=PROBLEMS)


async def list_repository(gateway: Any, *, only_ready: bool = False) -> list[dict[str, str]]:
    """The repository index: all models of all services with their state and, where not ready, the reason."""
    return [_indexed(e) for e in await gateway.models.listing() if e.get("ready") or not only_ready]


def _indexed(entry: dict[str, Any]) -> dict[str, str]:
    is_ready = bool(entry.get("ready"))
    state = str(entry.get("state", "ready" if is_ready else "not ready"))
    return {
        "name": entry["id"],
        "version": str(entry.get("version", "1")),
        "state": "READY" if is_ready else _STATES.get(state, "UNAVAILABLE"),
        "reason": "" if is_ready else str(entry.get("reason") or state),
    }


@router.get("")
async def metadata() -> dict[str, Any]:
    """Server metadata."""
    return SERVER_METADATA


@router.get("/health/live")
async def live() -> dict[str, bool]:
    """The gateway lives."""
    return {"live": True}


@router.get("/health/ready")
async def server_ready(request: Request) -> dict[str, bool]:
    """Every service has a ready replica."""
    fleet = request.app.state.gateway.fleet
    if not is_ready(fleet):
        raise NotReady(f"Not ready: {', '.join(fleet.unready) or 'no service is known yet'}.", retry_after=2)
    return {"ready": True}


@router.get("/models/stats")
async def statistics(request: Request) -> dict[str, Any]:
    """Counts and durations of all models; of each service, one replica is asked."""
    gateway = request.app.state.gateway
    targets = [target for name in gateway.fleet.services if (target := gateway.fleet.pick(name))]
    told = await asyncio.gather(*(gateway.client.json(target, "/v2/models/stats") for target in targets))
    known = [d["model_stats"] for d in told if isinstance(d, dict) and isinstance(d.get("model_stats"), list)]
    return {"model_stats": [stats for each in known for stats in each]}


@router.post("/repository/index", openapi_extra={"requestBody": _READY_BODY})
async def index(request: Request) -> list[dict[str, str]]:
    """All models of all services; with `{"ready": true}` only those that are ready."""
    gateway, exchange = request.app.state.gateway, request.scope["fovea.exchange"]
    return await list_repository(gateway, only_ready=_only_ready(await _body(gateway, exchange)))


async def _body(gateway: Any, exchange: RequestContext) -> bytes:
    body = exchange.body = gateway.proxy.body(exchange)
    try:
        whole: bytes = await gateway.proxy.whole(exchange, body)
    finally:
        body.release()
    return whole


def _only_ready(body: bytes) -> bool:
    """What a request for the index asks for; clients send an object or nothing."""
    try:
        asked = json.loads(body) if body.strip() else {}
    except (ValueError, RecursionError) as error:
        raise Malformed("The body is not JSON.") from error
    only = asked.get("ready", False) if isinstance(asked, dict) else None
    if not isinstance(only, bool):
        raise Malformed("The body must be an object whose `ready` is true or false.", field="ready")
    return only
