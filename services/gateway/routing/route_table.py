"""Route table: which service answers a path, built from the records of the replicas.

A path is found literally (`/v1/segment`), by template (`/v1/sessions/{id}`), below a known path, or by the model's
name in it (`/v2/models/{name}/…`, `/v1/models/{id}`). Knows nothing about which replica is alive.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from fovea import plugins
from fovea.api.replica import ReplicaRecord
from fovea.errors import NotFound

GATEWAY_PATHS = (
    "/livez", "/readyz", "/health", "/ping", "/version", "/metrics", "/openapi.json", "/docs", "/console", "/runs",
    "/v1/jobs", "/v1/files", "/v1/batches", "/v1/models", "/v2",
)  # fmt: skip
"""Paths (and everything below) that no service can claim by path."""

_CLAIMABLE = frozenset({"/v2/rerank"})
"""Paths below those that a service can claim all the same: Cohere's clients ask there."""

_INFERENCE = re.compile(
    r"/v2/models/(?P<name>.+?)(?:/versions/(?P<version>[^/]+))?(?P<verb>/infer|/ready|/config|/stats|)/?"
)
_LOADING = re.compile(r"/v2/repository/models/(?P<name>.+)/(?P<verb>load|unload)")
_ADAPTERS = "/v1/lora-adapters"
"""Route of the service whose tenants have models of their own, which the table does not know."""
_CARD = re.compile(r"/v1/models/(?P<name>.+?)(?P<verb>/example|/sparsity|)")


@dataclass(frozen=True, slots=True)
class Route:
    """Where a request goes.

    Attributes:
        services: Which services can answer; with more than one, the request's `model` decides.
        label: The path with its variable parts named, for metrics.
        model: Model name, where the path carries a known one: metrics have no labels that callers make up.
        is_effectful: Whether a POST leaves something behind, so that it is not sent twice.
        is_broadcast: Whether every replica must get it (load, unload).
        is_endless: Whether the body may never end; neither its size nor the time until its end is bounded, pauses are.
        is_affine: Whether replicas remember what they have read, so that what continues it goes to the same one.
    """

    services: tuple[str, ...]
    label: str
    model: str = ""
    is_effectful: bool = False
    is_broadcast: bool = False
    is_endless: bool = False
    is_affine: bool = False


@dataclass(frozen=True, slots=True)
class RouteTable:
    """All routes. `paths` are literal, `templates` hold `{…}`, `models` maps a model to its service."""

    paths: dict[str, Route] = field(default_factory=dict)
    templates: tuple[tuple[re.Pattern[str], Route], ...] = ()
    models: dict[str, str] = field(default_factory=dict)

    @classmethod
    def from_records(cls, records: Iterable[ReplicaRecord]) -> RouteTable:
        """Build the table of what these replicas serve."""
        paths: dict[str, Route] = {}
        models: dict[str, str] = {}
        for record in sorted(records, key=lambda r: (r.service, r.id)):
            for name in record.models:
                models.setdefault(name, record.service)
            for path in record.routes:
                if is_claimable(path):
                    paths[path] = _add_record(paths.get(path) or Route((), path), record)
        templates = tuple((_compile_template(p), route) for p, route in sorted(paths.items()) if "{" in p)
        return cls({p: r for p, r in paths.items() if "{" not in p}, templates, models)

    def find(self, path: str) -> Route | None:
        """Find the route of a path; None when it is not a service's.

        Raises NotFound: the path names a model that no service has; the hint lists the models there are.
        """
        if (route := self.paths.get(path)) is not None:
            return route
        # A client on the way to a replica resolves dots, and the key was checked for the path with them.
        if path == "/v2/models/stats" or {".", ".."} & set(path.split("/")):
            return None
        if path.startswith(("/v2/models/", "/v2/repository/models/", "/v1/models/")):
            return self._find_by_model(path)
        if _is_within(path, GATEWAY_PATHS):
            return None
        for pattern, route in self.templates:
            if pattern.fullmatch(path):
                return route
        return self._find_parent(path)

    def find_service(self, model: str, *, may_be_adapter: bool = False) -> str:
        """Find the service that serves a model, or that knows whether it is a tenant's adapter.

        Raises NotFound: there is none; the hint lists the models there are.
        """
        if model in self.models:
            return self.models[model]
        if missing := plugins.explain_missing("models", model, f"The model {model[:200]!r}", "model"):
            raise missing
        if may_be_adapter and (adapters := self.paths.get(_ADAPTERS)):
            return adapters.services[0]
        known = ", ".join(sorted(self.models)) or "none yet"
        raise NotFound(f"There is no model {model[:200]!r}.", hint=f"Served models: {known}.", field="model")

    def _find_by_model(self, path: str) -> Route:
        for pattern, label in ((_INFERENCE, "/v2/models"), (_LOADING, "/v2/repository/models"), (_CARD, "/v1/models")):
            if match := pattern.fullmatch(path):
                name, verb = match["name"], match["verb"]
                service = self.find_service(name, may_be_adapter=pattern is _CARD)
                is_loading, known = pattern is _LOADING, name if name in self.models else ""
                return Route((service,), f"{label}/{{name}}/{verb.lstrip('/')}", known, is_loading, is_loading)
        raise NotFound(f"There is no {path[:200]}.")

    def _find_parent(self, path: str) -> Route | None:
        head = path.rpartition("/")[0]
        while head:
            if (route := self.paths.get(head)) is not None:
                return route
            head = head.rpartition("/")[0]
        return None


def is_claimable(path: str) -> bool:
    """Whether a service can claim a path."""
    return path in _CLAIMABLE or (path != "/" and not _is_within(path, GATEWAY_PATHS))


def _add_record(route: Route, record: ReplicaRecord) -> Route:
    """The route with what one more replica says about it; a mark that any replica sets is set."""
    return replace(
        route,
        services=route.services if record.service in route.services else (*route.services, record.service),
        is_effectful=route.is_effectful or route.label in record.effectful,
        is_endless=route.is_endless or route.label in record.endless,
        is_affine=route.is_affine or route.label in record.affine,
    )


def _is_within(path: str, parents: tuple[str, ...]) -> bool:
    return any(path == parent or path.startswith(parent + "/") for parent in parents)


def _compile_template(template: str) -> re.Pattern[str]:
    pieces = re.split(r"(\{[^}]*\})", template)
    parts = ((".+" if p.endswith(":path}") else "[^/]+") if p.startswith("{") else re.escape(p) for p in pieces)
    return re.compile("".join(parts))
