"""Which service answers a path: a table built from what replicas say they serve.

By path (`/v1/segment`, templates such as `/v1/sessions/{id}`, and anything below a known path), and by model name
(`/v2/models/{name}/…`, `/v1/models/{id}`). Knows nothing about which replica is alive or how a request gets there.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from shared.api.replica import ReplicaRecord
from shared.errors import NotFound

__all__ = ["GATEWAY_PATHS", "Route", "RouteTable"]

GATEWAY_PATHS = ("/livez", "/readyz", "/metrics", "/openapi.json", "/docs", "/console", "/v1/jobs", "/v1/models", "/v2")
"""Paths (and everything below) that no service can claim by path."""

_EFFECTS = ("/v1/sessions", "/v1/documents")
"""Paths (and everything below) whose POST leaves something behind, so that it is not sent twice."""

_LIVE = ("/v1/detect/stream",)
"""Paths whose body may never end: answers come while it arrives, and nothing of it is kept."""

_TENSOR = re.compile(
    r"/v2/models/(?P<name>.+?)(?:/versions/(?P<version>[^/]+))?(?P<verb>/infer|/ready|/config|/stats|)/?"
)
_LOADING = re.compile(r"/v2/repository/models/(?P<name>.+)/(?P<verb>load|unload)")
_CARD = re.compile(r"/v1/models/(?P<name>.+?)(?P<verb>/example|/sparsity|)")


@dataclass(frozen=True, slots=True)
class Route:
    """Where a request goes.

    Attributes:
        services: Who can answer; more than one means that the body's `model` decides.
        label: The path with its variable parts named, for metrics.
        model: Model name, where the path carries it.
        effects: Whether a POST leaves something behind.
        everywhere: Whether every replica must hear it (load, unload).
        live: Whether the body may be endless; neither its size nor the time until its end is bounded, pauses are.
    """

    services: tuple[str, ...]
    label: str
    model: str = ""
    effects: bool = False
    everywhere: bool = False
    live: bool = False


@dataclass(frozen=True, slots=True)
class RouteTable:
    """The table. `paths` are literal, `templates` hold `{…}`, `models` maps a model to its service."""

    paths: dict[str, Route] = field(default_factory=dict)
    templates: tuple[tuple[re.Pattern[str], Route], ...] = ()
    models: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, replicas: Iterable[ReplicaRecord]) -> RouteTable:
        """The table of what these replicas serve."""
        known = sorted(replicas, key=lambda r: (r.service, r.id))
        paths: dict[str, Route] = {}
        models: dict[str, str] = {}
        for replica in known:
            for name in replica.models:
                models.setdefault(name, replica.service)
            for path in replica.routes:
                if not _within(path, GATEWAY_PATHS) and path != "/":
                    paths[path] = _joined(paths.get(path), path, replica.service)
        templates = tuple((_pattern(p), route) for p, route in sorted(paths.items()) if "{" in p)
        return cls({p: r for p, r in paths.items() if "{" not in p}, templates, models)

    def find(self, path: str) -> Route | None:
        """The route of a path; None when it is not a service's.

        Raises:
            NotFound: The path names a model that nobody serves; the detail lists the models there are.
        """
        if (route := self.paths.get(path)) is not None:
            return route
        if path == "/v2/models/stats":
            return None
        if path.startswith(("/v2/models/", "/v2/repository/models/", "/v1/models/")):
            return self._by_model(path)
        if _within(path, GATEWAY_PATHS) or "/.." in path:
            return None
        for pattern, route in self.templates:
            if pattern.fullmatch(path):
                return route
        return self._above(path)

    def listing(self) -> str:
        """The paths there are, in one line for people."""
        return ", ".join(sorted([*self.paths, *(r.label for _, r in self.templates)])) or "none yet"

    def service_of(self, model: str) -> str:
        """The service that serves a model.

        Raises:
            NotFound: Nobody does; the detail lists the models there are.
        """
        if model in self.models:
            return self.models[model]
        known = ", ".join(sorted(self.models)) or "none yet"
        raise NotFound(f"There is no model {model[:200]!r}.", hint=f"Served are: {known}.", field="model")

    def _by_model(self, path: str) -> Route:
        for pattern, label in ((_TENSOR, "/v2/models"), (_LOADING, "/v2/repository/models"), (_CARD, "/v1/models")):
            if match := pattern.fullmatch(path):
                name, verb = match["name"], match["verb"]
                service = self.service_of(name)
                everywhere = pattern is _LOADING
                return Route((service,), f"{label}/{{name}}/{verb.lstrip('/')}", name, everywhere, everywhere)
        raise NotFound(f"There is no {path[:200]}.")

    def _above(self, path: str) -> Route | None:
        head = path.rpartition("/")[0]
        while head:
            if (route := self.paths.get(head)) is not None:
                return route
            head = head.rpartition("/")[0]
        return None


def _joined(route: Route | None, path: str, service: str) -> Route:
    if route is None:
        return Route((service,), path, effects=_within(path, _EFFECTS), live=path in _LIVE)
    return route if service in route.services else replace(route, services=(*route.services, service))


def _within(path: str, places: tuple[str, ...]) -> bool:
    return any(path == place or path.startswith(place + "/") for place in places)


def _pattern(template: str) -> re.Pattern[str]:
    pieces = re.split(r"(\{[^}]*\})", template)
    parts = ((".+" if p.endswith(":path}") else "[^/]+") if p.startswith("{") else re.escape(p) for p in pieces)
    return re.compile("".join(parts))
