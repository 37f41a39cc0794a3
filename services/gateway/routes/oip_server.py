"""Open Inference v2 server routes: metadata, health, statistics and the repository index, for all replicas together.

REST routes are here; the gRPC server calls the same functions. Knows nothing about tensors.
"""

import asyncio
from typing import Any

from fastapi import APIRouter, Request

from fovea.errors import Malformed, NotReady
from services.gateway.http.bounded_json import parse_json_aside
from services.gateway.http.openapi import PROBLEMS
from services.gateway.routes.dependencies import read_whole_body
from services.gateway.routes.health import is_ready

_EXTENSIONS = ["binary_tensor_data", "model_repository", "statistics"]
SERVER_METADATA = {"name": "fovea", "version": "1", "extensions": _EXTENSIONS}
"""Server metadata."""

_STATES = {"ready": "READY", "on_demand": "READY", "loading": "LOADING", "waiting": "LOADING"}

_READY_BODY = {
    "content": {"application/json": {"schema": {"type": "object", "properties": {"ready": {"type": "boolean"}}}}}
}

router = APIRouter(prefix="/v2", tags=["open inference"], responses=PROBLEMS)


async def list_repository(gateway: Any, *, only_ready: bool = False) -> list[dict[str, str]]:
    """List the repository index: all models of all services with their state and, where not ready, the reason."""
    return [_build_index_entry(e) for e in await gateway.models.list_models() if e.get("ready") or not only_ready]


def _build_index_entry(entry: dict[str, Any]) -> dict[str, str]:
    has_loaded = bool(entry.get("ready"))
    state = str(entry.get("state", "ready" if has_loaded else "not ready"))
    return {
        "name": entry["id"],
        "version": str(entry.get("version", "1")),
        "state": "READY" if has_loaded else _STATES.get(state, "UNAVAILABLE"),
        "reason": "" if has_loaded else str(entry.get("reason") or state),
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
    registry = request.app.state.gateway.registry
    if not is_ready(registry):
        missing = ", ".join(registry.unready_services) or "no service is known yet"
        raise NotReady(f"Not ready: {missing}.", retry_after=2)
    return {"ready": True}


@router.get("/models/stats")
async def statistics(request: Request) -> dict[str, Any]:
    """Counts and durations of all models, from one replica of each service."""
    gateway = request.app.state.gateway
    places = [replica.record.http for name in gateway.registry.services if (replica := gateway.registry.pick(name))]
    documents = await asyncio.gather(*(gateway.client.fetch_json(http, "/v2/models/stats") for http in places))
    known = [d["model_stats"] for d in documents if isinstance(d, dict) and isinstance(d.get("model_stats"), list)]
    return {"model_stats": [stats for each in known for stats in each]}


@router.post("/repository/index", openapi_extra={"requestBody": _READY_BODY})
async def index(request: Request) -> list[dict[str, str]]:
    """All models of all services; with `{"ready": true}` only those that are ready."""
    body = await read_whole_body(request)
    document = await parse_json_aside(body) if body.strip() else {}
    if not isinstance(document, dict) or not isinstance(document.get("ready"), bool | None):
        raise Malformed("The body must be an object whose `ready` is true or false.", field="ready")
    return await list_repository(request.app.state.gateway, only_ready=bool(document.get("ready")))
