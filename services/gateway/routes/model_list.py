"""One list of all models of all services, in OpenAI's form. Asked from the replicas, kept for a second.

`/v1/models/{id}` and its example go straight to the service that has the model (`routing.route_table`).
"""

from __future__ import annotations

import asyncio
import time
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from starlette.responses import JSONResponse

from services.gateway.http.openapi_errors import PROBLEMS
from services.gateway.proxy.http_client import UpstreamClient
from services.gateway.routing.replica_registry import Replica, ReplicaRegistry
from shared.api.model import ModelEntry, ModelList

__all__ = ["ModelIndex", "router"]

MAX_AGE_S = 1.0
"""How old a list may be."""

router = APIRouter(tags=["models"], responses=PROBLEMS)


class ModelIndex:
    """The models of the fleet."""

    def __init__(self, fleet: ReplicaRegistry, client: UpstreamClient) -> None:
        """Ask the replicas of `fleet` through `client`."""
        self._fleet, self._client = fleet, client
        self._known: dict[str, list[dict[str, Any]]] = {}
        self._asked = float("-inf")
        self._asking = asyncio.Lock()

    async def listing(self, task: str | None = None) -> list[dict[str, Any]]:
        """Entries of all models, chat models first, then by service; only those of `task` where it is given."""
        async with self._asking:
            if time.monotonic() - self._asked > MAX_AGE_S:
                services = self._fleet.services
                lists = await asyncio.gather(*(self._of(service) for service in services))
                self._known = dict(zip(services, lists, strict=True))
                self._asked = time.monotonic()
        seen: dict[str, dict[str, Any]] = {}
        for entry in (e for entries in self._known.values() for e in entries):
            seen.setdefault(entry["id"], entry)
        chosen = [e for e in seen.values() if task is None or e["task"] == task]
        return sorted(chosen, key=lambda e: e["task"] != "chat")

    async def _of(self, service: str) -> list[dict[str, Any]]:
        """What a service lists; what it listed last, not ready, while it can't be asked."""
        for target in self._fleet.ready(service) or self._fleet.alive(service):
            document = await self._client.json(target, "/v1/models")
            if isinstance(document, dict) and isinstance(document.get("data"), list):
                return [e for e in document["data"] if _listable(e)]
            if target.replica.models:
                return [_plain(target, name) for name in target.replica.models]
        return [{**entry, "ready": False} for entry in self._known.get(service, [])]


def _listable(entry: Any) -> bool:
    return isinstance(entry, dict) and isinstance(entry.get("id"), str) and isinstance(entry.get("task"), str)


def _plain(target: Replica, name: str) -> dict[str, Any]:
    """The entry of a model that nobody describes, on a Triton server for example."""
    replica = target.replica
    entry = ModelEntry(id=name, created=0, task="infer", service=replica.service, ready=replica.ready)
    return entry.model_dump()


@router.get("/v1/models", response_model=ModelList)
async def models(
    request: Request, task: Annotated[str | None, Query(description="Only models of this task.")] = None
) -> JSONResponse:
    """All models of all services in OpenAI's form; chat models first, the default chat model is `data[0]`."""
    listing = await request.app.state.gateway.models.listing(task)
    return JSONResponse({"object": "list", "data": listing})
