"""One OpenAPI document of everything that can be called: the gateway's own routes and those of all services.

Services describe themselves; this file joins. Schemas that share a name but not a meaning are told apart by the
service's name. Knows nothing about how the document is shown.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import Any

from services.gateway.proxy.http_client import UpstreamClient
from services.gateway.routing.replica_registry import ReplicaRegistry

__all__ = ["OpenApiDocument", "join_documents"]

MAX_AGE_S = 5.0
"""How old the document may be."""

_OWN = ("/livez", "/readyz", "/metrics", "/v1/models", "/openapi.json", "/docs", "/v2/models/stats")
"""Paths of services that the gateway answers itself; below `/v1/models` it is the services' turn again."""

_METHODS = frozenset({"get", "put", "post", "delete", "patch", "head", "options"})


class OpenApiDocument:
    """The joined document, made again when it is old."""

    def __init__(self, fleet: ReplicaRegistry, client: UpstreamClient) -> None:
        """Ask the replicas of `fleet` through `client`."""
        self._fleet, self._client = fleet, client
        self._services: dict[str, dict[str, Any]] = {}
        self._asked = float("-inf")
        self._asking = asyncio.Lock()

    async def get(self, own: Mapping[str, Any], keys: bool) -> dict[str, Any]:
        """The document.

        Args:
            own: The document of the gateway's own routes.
            keys: Whether callers need a key.
        """
        async with self._asking:
            if time.monotonic() - self._asked > MAX_AGE_S:
                services = self._fleet.services
                documents = await asyncio.gather(*(self._of(service) for service in services))
                self._services |= {s: d for s, d in zip(services, documents, strict=True) if d}
                self._asked = time.monotonic() if all(documents) and documents else self._asked
        return join_documents(own, self._services, keys=keys)

    async def _of(self, service: str) -> dict[str, Any]:
        for target in self._fleet.alive(service):
            document = await self._client.json(target, "/openapi.json")
            if isinstance(document, dict) and isinstance(document.get("paths"), dict):
                return document
        return {}


def join_documents(own: Mapping[str, Any], services: Mapping[str, Mapping[str, Any]], *, keys: bool) -> dict[str, Any]:
    """Join documents; the gateway's own win over a service's, and earlier services over later ones."""
    paths: dict[str, Any] = {path: dict(item) for path, item in own.get("paths", {}).items()}
    schemas: dict[str, Any] = dict(own.get("components", {}).get("schemas", {}))
    for service, document in sorted(services.items()):
        names = _names(service, document, schemas)
        for name, schema in document.get("components", {}).get("schemas", {}).items():
            schemas[names[name]] = _renamed(schema, names)
        for path, item in document.get("paths", {}).items():
            if path not in paths and path not in _OWN and isinstance(item, dict):
                paths[path] = {method: _told(op, method, service, names) for method, op in item.items()}
    _unique_ids(paths)
    document = {**own, "paths": paths, "components": {"schemas": schemas}}
    if keys:
        document["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        document["security"] = [{"key": []}]
    return document


def _names(service: str, document: Mapping[str, Any], taken: Mapping[str, Any]) -> dict[str, str]:
    """What each schema of a service is called in the joined document."""
    prefix = "".join(word.capitalize() for word in service.split("-"))
    own = document.get("components", {}).get("schemas", {})
    return {name: name if taken.get(name, schema) == schema else f"{prefix}{name}" for name, schema in own.items()}


def _renamed(value: Any, names: Mapping[str, str]) -> Any:
    if isinstance(value, dict):
        return {k: _reference(v, names) if k == "$ref" else _renamed(v, names) for k, v in value.items()}
    return [_renamed(item, names) for item in value] if isinstance(value, list) else value


def _reference(reference: Any, names: Mapping[str, str]) -> Any:
    place, _, name = str(reference).rpartition("/")
    return f"{place}/{names.get(name, name)}"


def _told(operation: Any, method: str, service: str, names: Mapping[str, str]) -> Any:
    """An operation of a service: tagged with its name, and offered as a job where it is a POST."""
    if method not in _METHODS or not isinstance(operation, dict):
        return operation
    told = {**_renamed(operation, names), "tags": [service]}
    told["responses"] = {code: _refused(code, answer) for code, answer in told.get("responses", {}).items()}
    if method == "post":
        accepted = {"$ref": "#/components/schemas/Job"}
        answer = {
            "description": "Accepted as a job (`Prefer: respond-async`).",
            "content": {"application/json": {"schema": accepted}},
        }
        told["responses"]["202"] = answer
    return told


def _refused(code: str, answer: Any) -> Any:
    """An error of a service: the gateway may give it too, in the form of the route's family."""
    if not code.startswith(("4", "5")) or not isinstance(answer, dict) or "content" not in answer:
        return answer
    return {**answer, "content": {"application/json": {}, **answer["content"]}}


def _unique_ids(paths: Mapping[str, Any]) -> None:
    """Operation ids must be unique; a second one takes its tag in front."""
    seen: set[str] = set()
    for item in paths.values():
        for method, operation in item.items():
            if method in _METHODS and "operationId" in operation:
                if operation["operationId"] in seen:
                    operation["operationId"] = f"{operation.get('tags', ['own'])[0]}_{operation['operationId']}"
                seen.add(operation["operationId"])
