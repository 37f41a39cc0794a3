"""The standard gRPC health service (`grpc.health.v1`). What ready means is up to the caller."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any, Final

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

__all__ = ["add_health"]

_HEALTH_SERVICE: Final = "grpc.health.v1.Health"
_CHECK_INTERVAL_S: Final = 0.5


def add_health(server: grpc.aio.Server, is_ready: Callable[[], bool], service: str) -> None:
    """Add health for the whole server (`""`) and for `service`, both serving while `is_ready()`."""
    health_pb2_grpc.add_HealthServicer_to_server(_Health(is_ready, service), server)


class _Health(health_pb2_grpc.HealthServicer):  # type: ignore[misc]  # the library has no types
    """Answers with the current state."""

    def __init__(self, is_ready: Callable[[], bool], service: str) -> None:
        self._is_ready, self._known = is_ready, frozenset({"", service, _HEALTH_SERVICE})

    async def Check(self, request: Any, context: Any) -> Any:  # noqa: N802  # the protocol's name
        """Whether a service is served."""
        if request.service not in self._known:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"There is no service {request.service!r}.")
        return self._status(request.service)

    async def Watch(self, request: Any, context: Any) -> AsyncIterator[Any]:  # noqa: N802  # the protocol's name
        """The same, now and after every change."""
        last = None
        while True:
            if (status := self._status(request.service)) != last:
                yield (last := status)
            await asyncio.sleep(_CHECK_INTERVAL_S)

    def _status(self, service: str) -> Any:
        response = health_pb2.HealthCheckResponse
        if service not in self._known:
            return response(status=response.SERVICE_UNKNOWN)
        return response(
            status=response.SERVING if service == _HEALTH_SERVICE or self._is_ready() else response.NOT_SERVING
        )
