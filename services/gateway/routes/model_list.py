"""`/v1/models`: one list of all models of all services, in OpenAI's form, cached for a second.

A tenant's own LoRA adapters are listed for that tenant alone, with `parent`.

`/v1/models/{id}` and its example are proxied to the service that has the model (`routing.route_table`).
"""

import asyncio
import json
import time
from collections import OrderedDict
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from starlette.responses import JSONResponse

from fovea.api.model import ModelEntry, ModelList
from fovea.api.replica import ReplicaRecord
from services.gateway.http.openapi import PROBLEMS
from services.gateway.proxy.http_client import UpstreamClient
from services.gateway.routes.dependencies import get_caller
from services.gateway.routing.replica_registry import ReplicaRegistry

MAX_AGE_S = 1.0
"""How old the list may be."""

NOBODY = "-"
"""A tenant that nobody is: names begin with a letter or digit."""

_MAX_TENANTS = 256
"""Tenants whose variants are remembered."""

router = APIRouter(tags=["models"], responses=PROBLEMS)


class ModelIndex:
    """The models of all replicas."""

    def __init__(self, registry: ReplicaRegistry, client: UpstreamClient) -> None:
        self._registry, self._client = registry, client
        self._by_service: dict[str, list[dict[str, Any]]] = {}
        self._variants: OrderedDict[str, tuple[float, list[dict[str, Any]]]] = OrderedDict()  # by tenant
        self._fetched_at = float("-inf")
        self._lock = asyncio.Lock()

    async def list_models(self, task: str | None = None, tenant: str | None = None) -> list[dict[str, Any]]:
        """List the entries of all models, chat models first, then by service; with `task` only those of this task.

        With a tenant, what it made of them comes behind the models of its task.
        """
        async with self._lock:
            if time.monotonic() - self._fetched_at > MAX_AGE_S:
                services = self._registry.services
                lists = await asyncio.gather(*(self._fetch(service) for service in services))
                self._by_service = dict(zip(services, lists, strict=True))
                self._fetched_at = time.monotonic()
        by_name: dict[str, dict[str, Any]] = {}
        variants = [] if tenant is None else await self._list_variants(tenant)
        for entry in [*(e for entries in self._by_service.values() for e in entries), *variants]:
            by_name.setdefault(entry["id"], entry)
        matching = [e for e in by_name.values() if task is None or e["task"] == task]
        return sorted(matching, key=lambda e: e["task"] != "chat")

    async def _list_variants(self, tenant: str) -> list[dict[str, Any]]:
        """A tenant's variants of chat models, asked for at most once a second."""
        fetched_at, found = self._variants.get(tenant, (float("-inf"), []))
        if time.monotonic() - fetched_at > MAX_AGE_S:
            services = [name for name, es in self._by_service.items() if any(e["task"] == "chat" for e in es)]
            lists = await asyncio.gather(*(self._fetch(service, tenant) for service in services))
            found = [e for entries in lists for e in entries if e.get("parent")]
            self._variants[tenant] = time.monotonic(), found
            self._variants.move_to_end(tenant)
            if len(self._variants) > _MAX_TENANTS:
                self._variants.popitem(last=False)
        return found

    async def _fetch(self, service: str, tenant: str = NOBODY) -> list[dict[str, Any]]:
        """Fetch the list of a service; its last one, marked not ready, while it can't be reached."""
        for replica in self._registry.list_ready(service) or self._registry.list_alive(service):
            document = await self._client.fetch_json(replica.record.http, "/v1/models", tenant)
            if isinstance(document, dict) and isinstance(document.get("data"), list):
                entries = [e for e in document["data"] if _is_entry(e)]
                if tenant == NOBODY:  # what is kept is shown to everybody
                    self._registry.on_demand.keep(service, "models", json.dumps(entries))
                return entries
            if replica.record.models:
                return [_build_plain_entry(replica.record, name) for name in replica.record.models]
        if self._registry.on_demand.is_known(service):  # a request starts a replica: its models count as ready
            return self._list_asleep(service)
        return [{**entry, "ready": False} for entry in self._by_service.get(service, [])]

    def _list_asleep(self, service: str) -> list[dict[str, Any]]:
        on_demand = self._registry.on_demand
        if kept := on_demand.read(service, "models"):
            return [{**entry, "ready": True} for entry in json.loads(kept)]
        record = on_demand.records()[service]
        return [_build_plain_entry(record, name) for name in record.models]


def _is_entry(entry: Any) -> bool:
    return isinstance(entry, dict) and isinstance(entry.get("id"), str) and isinstance(entry.get("task"), str)


def _build_plain_entry(record: ReplicaRecord, name: str) -> dict[str, Any]:
    """Build the entry of a model without a description, for example on a Triton server."""
    entry = ModelEntry(id=name, created=0, task="infer", service=record.service, ready=record.ready)
    return entry.model_dump()


@router.get("/v1/models", response_model=ModelList)
async def models(
    request: Request, task: Annotated[str | None, Query(description="Only models of this task.")] = None
) -> JSONResponse:
    """All models of all services in OpenAI's form; chat models first, the default chat model is `data[0]`."""
    listing = await request.app.state.gateway.models.list_models(task, get_caller(request).tenant)
    return JSONResponse({"object": "list", "data": listing})
