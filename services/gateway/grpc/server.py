"""Open Inference v2 over gRPC for the whole fleet: messages pass as bytes to a replica that has the model.

Of a message only the model's name is read. What concerns the server itself is answered here, beside the standard health
service. Knows nothing about HTTP and nothing about tensors.
"""

from __future__ import annotations

import errno
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any, Final

import grpc

from services.gateway.app import Gateway
from services.gateway.grpc.health import add_health
from services.gateway.grpc.protobuf_peek import read_text_field
from services.gateway.grpc.proxy import ChannelPool, GrpcCall, GrpcProxy
from services.gateway.policy.auth import LOCAL, Caller, read_credentials
from services.gateway.policy.auth import KeyScope as Permission
from services.gateway.routes import health, oip_server
from shared.api.problem import oip_error
from shared.errors import FoveaError, NotFound
from shared.rpc import open_inference_pb2 as pb
from shared.telemetry import ERRORS, IN_FLIGHT, REQUEST_LATENCY, REQUESTS, fresh_context

__all__ = ["SERVICE", "serve_grpc"]

SERVICE: Final = "inference.GRPCInferenceService"
"""The public name of Open Inference v2, as clients call it."""

_LONGEST_DETAIL: Final = 2000
"""Characters of an error's text: it travels as a header, and those are limited to a few kilobytes."""

_NAMED: Final = {
    "ModelInfer": 1,
    "ModelMetadata": 1,
    "ModelReady": 1,
    "ModelConfig": 1,
    "ModelStatistics": 1,
    "RepositoryModelLoad": 2,
    "RepositoryModelUnload": 2,
}
"""Methods that pass to a replica, and the number of the field that names the model."""

Context = grpc.aio.ServicerContext[Any, Any]
Deed = Callable[[bytes, GrpcCall], Awaitable[bytes]]


async def serve_grpc(gateway: Gateway, host: str, port: int) -> tuple[grpc.aio.Server, int]:
    """Start the server.

    Returns:
        The running server (stop it with `await server.stop(grace)`), and its port.

    Raises:
        OSError: The port is in use.
    """
    options = [
        ("grpc.max_receive_message_length", gateway.settings.max_body_bytes),
        ("grpc.max_send_message_length", -1),
        ("grpc.so_reuseport", 0),  # a port in use is an error, and not shared in silence
    ]
    server = grpc.aio.server(options=options)
    server.add_generic_rpc_handlers((_Front(gateway),))
    add_health(server, lambda: health.is_ready(gateway.fleet), SERVICE)
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    try:
        taken = server.add_insecure_port(address)
    except RuntimeError as error:
        raise OSError(errno.EADDRINUSE, "Address already in use") from error
    await server.start()
    return server, taken


class _Front(grpc.GenericRpcHandler):
    """The methods of the service, each from bytes to bytes."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._passage = GrpcProxy(gateway.fleet, ChannelPool(gateway.fleet, gateway.settings.max_body_bytes))
        deeds: dict[str, Deed] = {
            "ServerLive": self._live,
            "ServerReady": self._ready,
            "ServerMetadata": self._metadata,
            "RepositoryIndex": self._index,
        }
        self._handlers: Mapping[str, Any] = {
            **{name: grpc.unary_unary_rpc_method_handler(self._unary(name, deed)) for name, deed in deeds.items()},
            **{name: grpc.unary_unary_rpc_method_handler(self._unary(name, self._pass)) for name in _NAMED},
            "ModelStreamInfer": grpc.stream_stream_rpc_method_handler(self._stream),
        }

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[Any, Any] | None:
        """The handler of a method; methods of Triton's service that are not offered are refused in words."""
        service, _, name = handler_call_details.method.lstrip("/").partition("/")
        if service != SERVICE:
            return None
        return self._handlers.get(name) or grpc.unary_unary_rpc_method_handler(_not_offered)

    # Around every call.

    def _unary(self, name: str, deed: Deed) -> Callable[[bytes, Context], Awaitable[bytes]]:
        async def behaviour(message: bytes, context: Context) -> bytes:
            async with _Counted(name):
                try:
                    return await deed(message, await self._admitted(name, context))
                except FoveaError as error:
                    await _abort(context, error)
                except grpc.aio.AioRpcError as error:
                    await _hand_back(context, error)
            return b""  # not reached: both endings raise

        return behaviour

    async def _stream(self, messages: AsyncIterator[bytes], context: Context) -> AsyncIterator[bytes]:
        async with _Counted("ModelStreamInfer"):
            try:
                call = await self._admitted("ModelStreamInfer", context)
                first = await anext(messages, None)
                if first is None:
                    return
                call.service = self._gateway.fleet.routing.service_of(read_text_field(first, 1))
                async for answer in self._passage.stream(call, first, messages):
                    yield answer
            except FoveaError as error:
                await _abort(context, error)
            except grpc.aio.AioRpcError as error:
                await _hand_back(context, error)

    async def _admitted(self, name: str, context: Context) -> GrpcCall:
        """Who calls, until when, and under which ids; checks permission and limits."""
        gateway = self._gateway
        sent = [(k, v) for k, v in context.invocation_metadata() or () if isinstance(v, str)]
        headers = {k.encode(): v.encode("utf-8", "replace") for k, v in sent}
        ids = fresh_context(dict(sent).get("x-request-id"), dict(sent).get("traceparent"), "")
        context.set_trailing_metadata((("x-request-id", ids.request_id),))
        caller: Caller = LOCAL
        if name not in {"ServerLive", "ServerReady"}:
            caller = LOCAL if gateway.settings.auth != "keys" else gateway.keys.caller(read_credentials(headers))
            caller.demand(_permission(name))
            await gateway.limits.count(caller)
        left = context.time_remaining()
        seconds = min(gateway.settings.deadline_s, math.inf if left is None else left)
        return GrpcCall(
            path=f"/{SERVICE}/{name}", metadata=sent, tenant=caller.tenant, ids=ids, deadline=time.monotonic() + seconds
        )

    # The methods.

    async def _pass(self, message: bytes, call: GrpcCall) -> bytes:
        name, model = call.method, read_text_field(message, _NAMED[call.method])
        if name == "ModelStatistics" and not model:
            return await self._passage.joined(call, message)
        try:
            call.service = self._gateway.fleet.routing.service_of(model)
        except NotFound:
            if name == "ModelReady":
                return pb.ModelReadyResponse(ready=False).SerializeToString()
            raise
        if name == "ModelReady" and not self._gateway.fleet.ready(call.service):
            return pb.ModelReadyResponse(ready=False).SerializeToString()
        if name.startswith("Repository"):
            return await self._passage.everywhere(call, message)
        return await self._passage.unary(call, message)

    async def _live(self, _message: bytes, _call: GrpcCall) -> bytes:
        return pb.ServerLiveResponse(live=True).SerializeToString()

    async def _ready(self, _message: bytes, _call: GrpcCall) -> bytes:
        return pb.ServerReadyResponse(ready=health.is_ready(self._gateway.fleet)).SerializeToString()

    async def _metadata(self, _message: bytes, _call: GrpcCall) -> bytes:
        facts: dict[str, Any] = oip_server.SERVER_METADATA
        return pb.ServerMetadataResponse(**facts).SerializeToString()

    async def _index(self, message: bytes, _call: GrpcCall) -> bytes:
        wanted = pb.RepositoryIndexRequest.FromString(message).ready
        index = await oip_server.list_repository(self._gateway, only_ready=wanted)
        models = [pb.RepositoryIndexResponse.ModelIndex(**entry) for entry in index]
        return pb.RepositoryIndexResponse(models=models).SerializeToString()


class _Counted:
    """Counts one call and its time."""

    def __init__(self, method: str) -> None:
        self._route = f"grpc {method}"

    async def __aenter__(self) -> None:
        self._begun = time.perf_counter()
        IN_FLIGHT.labels("gateway").inc()

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, _trace: object) -> None:
        IN_FLIGHT.labels("gateway").dec()
        REQUESTS.labels("gateway", "", self._route, "OK" if kind is None else "ERROR").inc()
        REQUEST_LATENCY.labels("gateway", self._route).observe(time.perf_counter() - self._begun)


async def _abort(context: Context, error: FoveaError) -> None:
    """End a call with an error of ours."""
    ERRORS.labels("gateway", "", error.code).inc()
    trailers = context.trailing_metadata() or ()
    if error.retry_after is not None:
        trailers = (*trailers, ("retry-after", str(math.ceil(error.retry_after))))
    await context.abort(grpc.StatusCode[error.grpc], oip_error(error)["error"][:_LONGEST_DETAIL], tuple(trailers))


async def _hand_back(context: Context, error: grpc.aio.AioRpcError) -> None:
    """End a call with the error that a replica ended it with."""
    ERRORS.labels("gateway", "", error.code().name.lower()).inc()
    await context.abort(error.code(), error.details() or "", tuple(error.trailing_metadata() or ()))


async def _not_offered(_message: bytes, context: Context) -> bytes:
    detail = "This method is not offered: shared memory, trace and log settings stay with the operator."
    await context.abort(grpc.StatusCode.UNIMPLEMENTED, detail)


def _permission(name: str) -> Permission:
    return "admin" if name in {"RepositoryModelLoad", "RepositoryModelUnload"} else "infer"
