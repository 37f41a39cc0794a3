"""OpenAPI document of the whole product: the gateway's own routes joined with those of all services.

Services describe themselves. Schemas that share a name but not a meaning get the service's name in front.
Knows nothing about how the document is shown.
"""

import asyncio
import json
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, TypeVar

from fovea.api.problem import PROBLEM_CONTENT_TYPE, Problem
from services.gateway.http.reference_groups import GROUPS, find_group
from services.gateway.proxy.http_client import UpstreamClient
from services.gateway.routing.replica_registry import ReplicaRegistry

Derived = TypeVar("Derived")

MAX_AGE_S = 5.0
"""How old the document may be."""

RETRY_S = 1.0
"""How old it may be while a service gives none."""

_ERROR_CONTENT = {PROBLEM_CONTENT_TYPE: {"schema": Problem.model_json_schema()}, "application/json": {}}

PROBLEMS: dict[int | str, dict[str, Any]] = {
    "4XX": {"description": "The fault of the request, and advice.", "content": _ERROR_CONTENT},
    "5XX": {"description": "A fault of the server.", "content": _ERROR_CONTENT},
}
"""`responses` of the gateway's own routes: errors as problems, or in the error format of the path."""

_METHODS = frozenset({"get", "put", "post", "delete", "patch", "head", "options"})


class OpenApiDocument:
    """The joined document and what is made of it, kept until a service's own document changes."""

    def __init__(self, registry: ReplicaRegistry, client: UpstreamClient, *, keys: bool) -> None:
        """Fetch documents from the replicas of `registry` through `client`; `keys`: whether callers need a key."""
        self._registry, self._client, self._keys = registry, client, keys
        self._texts: dict[str, str] = {}
        self._joined: dict[str, Any] | None = None
        self._derived: dict[str, Any] = {}
        self._due = float("-inf")
        self._lock = asyncio.Lock()

    async def derive(self, own: Mapping[str, Any], name: str, build: Callable[[dict[str, Any]], Derived]) -> Derived:
        """Get what `build` makes of the document, made once off the event loop; it leaves the document as it is.

        `own` is the document of the gateway's own routes, `name` the kind of object, one of few.
        """
        async with self._lock:
            document = await self._refresh(own)
            if name not in self._derived:
                self._derived[name] = await asyncio.to_thread(build, document)
            made: Derived = self._derived[name]
            return made

    async def _refresh(self, own: Mapping[str, Any]) -> dict[str, Any]:
        if self._joined is None or time.monotonic() > self._due:
            services = self._registry.services
            found = await asyncio.gather(*(self._fetch(service) for service in services))
            texts = self._texts | {s: text for s, text in zip(services, found, strict=True) if text}
            if self._joined is None or texts != self._texts:
                self._joined = await asyncio.to_thread(_join_texts, own, texts, keys=self._keys)
                self._texts, self._derived = texts, {}
            self._due = time.monotonic() + (MAX_AGE_S if found and all(found) else RETRY_S)
        return self._joined

    async def _fetch(self, service: str) -> str:
        for replica in self._registry.list_alive(service):
            if text := await self._client.fetch_text(replica.record.http, "/openapi.json"):
                self._registry.on_demand.keep(service, "openapi", text)
                return text
        return self._registry.on_demand.read(service, "openapi")


def _join_texts(own: Mapping[str, Any], texts: Mapping[str, str], *, keys: bool) -> dict[str, Any]:
    """Join the documents that these texts hold; a text that is not a document is left out."""
    documents = {}
    for service, text in texts.items():
        with suppress(ValueError):
            document = json.loads(text)
            if isinstance(document, dict) and isinstance(document.get("paths"), dict):
                documents[service] = document
    return join_documents(own, documents, keys=keys)


def join_documents(own: Mapping[str, Any], services: Mapping[str, Mapping[str, Any]], *, keys: bool) -> dict[str, Any]:
    """Join documents; the gateway's own win over a service's, and earlier services over later ones."""
    paths: dict[str, Any] = {path: dict(item) for path, item in own.get("paths", {}).items()}
    schemas: dict[str, Any] = dict(own.get("components", {}).get("schemas", {}))
    for service, document in sorted(services.items()):
        names = _choose_schema_names(service, document, schemas)
        for name, schema in document.get("components", {}).get("schemas", {}).items():
            schemas[names[name]] = _rename_references(schema, names)
        for path, item in document.get("paths", {}).items():
            if path not in paths and isinstance(item, dict):
                paths[path] = {method: _adapt_operation(op, method, service, names) for method, op in item.items()}
    _make_ids_unique(paths)
    paths = {path: {m: _name_operation(path, m, op) for m, op in item.items()} for path, item in paths.items()}
    groups = [{"name": group.title, "description": group.about} for group in GROUPS]
    document = {**own, "tags": groups, "paths": paths, "components": {"schemas": schemas}}
    if keys:
        document["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        document["security"] = [{"key": []}]
    return document


def _name_operation(path: str, method: str, operation: Any) -> Any:
    """Put an operation into the group of its path, and name one that only repeats the name of its function."""
    if method not in _METHODS:
        return operation
    group = find_group(path)
    named = {**operation, "tags": [group] if group else operation.get("tags", [])}
    if parameters := operation.get("parameters"):
        named["parameters"] = [{"description": p.get("schema", {}).get("description", ""), **p} for p in parameters]
    name = str(operation.get("summary", "")).lower().replace(" ", "_")
    first, _, rest = str(operation.get("description", "")).partition("\n")
    if first and name in str(operation.get("operationId", "")):
        named |= {"summary": first.rstrip(".: "), "description": rest.strip()}
    return named


def _choose_schema_names(service: str, document: Mapping[str, Any], taken: Mapping[str, Any]) -> dict[str, str]:
    prefix = "".join(word.capitalize() for word in service.split("-"))
    own = document.get("components", {}).get("schemas", {})
    return {name: name if taken.get(name, schema) == schema else f"{prefix}{name}" for name, schema in own.items()}


def _rename_references(value: Any, names: Mapping[str, str]) -> Any:
    if isinstance(value, dict):
        renamed = {k: _rename_references(v, names) for k, v in value.items()}
        if "$ref" in value:
            place, _, name = str(value["$ref"]).rpartition("/")
            renamed["$ref"] = f"{place}/{names.get(name, name)}"
        return renamed
    return [_rename_references(item, names) for item in value] if isinstance(value, list) else value


def _adapt_operation(operation: Any, method: str, service: str, names: Mapping[str, str]) -> Any:
    """Tag an operation with its service, and offer it as a job where it is a POST."""
    if method not in _METHODS or not isinstance(operation, dict):
        return operation
    adapted = {**_rename_references(operation, names), "tags": [service]}
    adapted["responses"] = {
        code: _add_error_format(code, answer) for code, answer in adapted.get("responses", {}).items()
    }
    if method == "post":
        content = {"application/json": {"schema": {"$ref": "#/components/schemas/Job"}}}
        answer = {"description": "Accepted as a job (`Prefer: respond-async`).", "content": content}
        adapted["responses"]["202"] = answer
    return adapted


def _add_error_format(code: str, answer: Any) -> Any:
    """Add JSON to an error of a service: the gateway may answer with it too, in the error format of the path."""
    if not code.startswith(("4", "5")) or not isinstance(answer, dict) or "content" not in answer:
        return answer
    return {**answer, "content": {"application/json": {}, **answer["content"]}}


def _make_ids_unique(paths: Mapping[str, Any]) -> None:
    """Make operation ids unique: a second one gets its tag in front."""
    used: set[str] = set()
    for item in paths.values():
        for method, operation in item.items():
            if method in _METHODS and "operationId" in operation:
                if operation["operationId"] in used:
                    operation["operationId"] = f"{operation.get('tags', ['own'])[0]}_{operation['operationId']}"
                used.add(operation["operationId"])
