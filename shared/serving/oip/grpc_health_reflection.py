"""gRPC health and reflection services.

Reflection shows our messages under the public package `inference`, from a descriptor pool of its own, so that it does
not clash with a client library in the same process.
"""

import asyncio
from collections.abc import AsyncIterator
from typing import Any, Final

import grpc
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.json_format import MessageToJson, Parse
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2

from shared.rpc import open_inference_pb2 as pb
from shared.serving.host import Host

SERVICE: Final = "inference.GRPCInferenceService"
"""The public name of Open Inference v2, as clients call it."""

_HEALTH: Final = "grpc.health.v1.Health"
_WATCH_POLL_S: Final = 0.5


def add_standard_services(server: grpc.aio.Server, host: Host) -> None:
    """Add health, which follows the host's readiness, and reflection."""
    health_pb2_grpc.add_HealthServicer_to_server(_Health(host), server)
    reflection.enable_server_reflection((SERVICE, _HEALTH, reflection.SERVICE_NAME), server, _public_pool())


class _Health(health_pb2_grpc.HealthServicer):  # type: ignore[misc]  # the library has no types
    """grpc.health.v1 for the whole server (`""`) and for Open Inference."""

    def __init__(self, host: Host) -> None:
        self._host = host

    async def Check(self, request: Any, context: Any) -> Any:  # noqa: N802  # the protocol's name
        """Whether all models are loaded."""
        if request.service not in {"", SERVICE, _HEALTH}:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"There is no service {request.service!r} here.")
        return self._status(request.service)

    async def Watch(self, request: Any, context: Any) -> AsyncIterator[Any]:  # noqa: N802  # the protocol's name
        """The same, now and at every change."""
        last = None
        while True:
            status = self._status(request.service)
            if status != last:
                yield (last := status)
            await asyncio.sleep(_WATCH_POLL_S)

    def _status(self, service: str) -> Any:
        kinds = health_pb2.HealthCheckResponse
        if service not in {"", SERVICE, _HEALTH}:
            return kinds(status=kinds.SERVICE_UNKNOWN)
        is_serving = service == _HEALTH or self._host.ready
        return kinds(status=kinds.SERVING if is_serving else kinds.NOT_SERVING)


def _public_pool() -> DescriptorPool:
    ours, public = FileDescriptorProto(), FileDescriptorProto()
    pb.DESCRIPTOR.CopyToProto(ours)
    Parse(MessageToJson(ours).replace(ours.package, SERVICE.partition(".")[0]), public)
    pool = DescriptorPool()
    pool.Add(public)
    for standard in (health_pb2.DESCRIPTOR, reflection_pb2.DESCRIPTOR):
        pool.AddSerializedFile(standard.serialized_pb)
    return pool
