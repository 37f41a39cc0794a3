"""The standard health service (`grpc.health.v1`) of the gateway. Knows a question to ask, not what it is about."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any, Final

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

__all__ = ["add_health"]

_HEALTH: Final = "grpc.health.v1.Health"
_LOOK_EVERY_S: Final = 0.5


def add_health(server: grpc.aio.Server, ready: Callable[[], bool], service: str) -> None:
    """Add health for the whole server (`""`) and for `service`, both serving while `ready()`."""
    health_pb2_grpc.add_HealthServicer_to_server(_Health(ready, service), server)


class _Health(health_pb2_grpc.HealthServicer):  # type: ignore[misc]  # the library has no types
    """Answers from what is so now."""

    def __init__(self, ready: Callable[[], bool], service: str) -> None:
        self._ready, self._known = ready, frozenset({"", service, _HEALTH})

    async def Check(self, request: Any, context: Any) -> Any:  # noqa: N802  # the protocol's name
        """Whether a service is served."""
        if request.service not in self._known:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"There is no service {request.service!r} here.")
        return self._status(request.service)

    async def Watch(self, request: Any, context: Any) -> AsyncIterator[Any]:  # noqa: N802  # the protocol's name
        """The same, now and at every change."""
        told = None
        while True:
            if (status := self._status(request.service)) != told:
                yield (told := status)
            await asyncio.sleep(_LOOK_EVERY_S)

    def _status(self, service: str) -> Any:
        kinds = health_pb2.HealthCheckResponse
        if service not in self._known:
            return kinds(status=kinds.SERVICE_UNKNOWN)
        return kinds(status=kinds.SERVING if service == _HEALTH or self._ready() else kinds.NOT_SERVING)
