"""Static upstreams: services at a fixed address, for example a Triton server, which announce nothing and are polled.

Models are learned from the Open Inference repository index and from `/v1/models`, routes from `/openapi.json`, where
there is one. Knows nothing about Redis and nothing about requests in flight.
"""

import time
from collections.abc import Mapping
from typing import Any

from fovea.api.replica import ReplicaRecord, route_fields
from services.gateway.proxy.http_client import UpstreamClient
from services.gateway.routing.route_table import is_claimable

RELEARN_INTERVAL_S, RETRY_INTERVAL_S = 5.0, 1.0
"""Seconds between two readings of what an upstream serves, and after one without routes; polls check its readiness."""


class StaticUpstream:
    """The static upstream of one service."""

    def __init__(self, service: str, http: str, grpc: str | None, credentials: Mapping[str, str] | None = None) -> None:
        self._client = UpstreamClient(credentials)
        self.service, self._http, self._grpc = service, http, grpc
        self._models: tuple[str, ...] = ()
        self._routes: dict[str, tuple[str, ...]] = {}
        self._due = 0.0

    async def fetch_record(self) -> ReplicaRecord | None:
        """Fetch its record, as if it had announced itself; None before it was reached for the first time."""
        ready = await self._answers("/v2/health/ready") or await self._answers("/readyz")
        if ready and time.monotonic() >= self._due:
            self._due = time.monotonic() + (RELEARN_INTERVAL_S if await self._learn() else RETRY_INTERVAL_S)
        if not ready and not (self._models or self._routes.get("routes")):
            return None
        return ReplicaRecord(
            id=f"fixed-{self.service}", service=self.service, http=self._http, grpc=self._grpc, pid=0, ready=ready,
            models=self._models, seen=time.time(), **self._routes,
        )  # fmt: skip

    async def close(self) -> None:
        """Close the connections."""
        await self._client.stop()

    async def _learn(self) -> bool:
        """Learn what it serves; what a busy upstream doesn't tell stays as it was. Returns whether routes came."""
        fetch = self._client.fetch_json
        index = await fetch(self._http, "/v2/repository/index", method="POST")
        listed, document = await fetch(self._http, "/v1/models"), await fetch(self._http, "/openapi.json")
        names = [m.get("name") for m in _only_objects(index)]
        names += [m.get("id") for m in _only_objects(listed.get("data") if isinstance(listed, dict) else None)]
        if index is not None or listed is not None:
            self._models = tuple(dict.fromkeys(n for n in names if isinstance(n, str)))
        self._routes = route_fields(document, is_claimable) if isinstance(document, dict) else self._routes
        return isinstance(document, dict)

    async def _answers(self, path: str) -> bool:
        return await self._client.fetch_text(self._http, path) is not None


def _only_objects(value: Any) -> list[dict[str, Any]]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []
