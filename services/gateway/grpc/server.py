"""gRPC server for Open Inference v2: passes messages as bytes to a replica that has the model.

Of a message only the model's name is read. Calls about the server itself are answered here, next to the standard health
service. Knows nothing about HTTP and nothing about tensors.
"""

from __future__ import annotations

import asyncio
import errno
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any, Final

import grpc
from google.protobuf.message import DecodeError

from fovea.errors import Malformed, NotFound, TooLarge
from services.gateway.gateway import Gateway
from services.gateway.grpc.health import AnonymousReader, add_health
from services.gateway.grpc.proxy import ChannelPool, GrpcCall, GrpcProxy
from services.gateway.grpc.status import Context, ObservedCall
from services.gateway.grpc.streams import InferStreams, read_first, read_text_field
from services.gateway.policy.caller import LOCAL, Caller
from services.gateway.policy.memory_budget import MessageReader
from services.gateway.routes import health, oip_server
from shared.rpc import open_inference_pb2 as pb
from shared.telemetry import Context as Ids
from shared.telemetry import span

SERVICE: Final = "inference.GRPCInferenceService"
"""The service name of Open Inference v2."""

_MAX_OWN_BYTES: Final = 2**16
"""Bytes of a message that is answered here: none of them has more than a name."""

_ANONYMOUS: Final = frozenset({"ServerLive", "ServerReady"})
"""Methods that need no key."""

_WITHOUT_MESSAGE: Final = _ANONYMOUS | {"ServerMetadata"}  # gRPC would hold all of a message that is read

_MAX_CALLS: Final = 4096
"""Calls at a time, of all callers; each caller's own limits are far below."""

_MAX_CALLS_PER_CONNECTION: Final = 1024
"""Calls that a connection may have open: HTTP/2 clients keep back those beyond it."""

_LOADING: Final = ("RepositoryModelLoad", "RepositoryModelUnload")

_MODEL_FIELDS: Final = {
    **dict.fromkeys(("ModelInfer", "ModelMetadata", "ModelReady", "ModelConfig", "ModelStatistics"), 1),
    **dict.fromkeys(_LOADING, 2),
}
"""Methods that are passed to a replica, and the number of the field that names the model."""

Method = Callable[[bytes, GrpcCall], Awaitable[bytes]]


async def serve_grpc(gateway: Gateway, host: str, port: int) -> tuple[grpc.aio.Server, int]:
    """Start the server; returns it, to `await server.stop(grace)`, and its port. Raises OSError: the port is in use."""
    options = [
        ("grpc.max_receive_message_length", gateway.settings.max_body_bytes),
        ("grpc.max_send_message_length", -1),
        ("grpc.max_concurrent_streams", _MAX_CALLS_PER_CONNECTION),
        ("grpc.so_reuseport", 0),  # a port in use is an error, and not shared in silence
    ]
    server = grpc.aio.server(options=options, maximum_concurrent_rpcs=_MAX_CALLS)
    server.add_generic_rpc_handlers((_InferenceHandler(gateway),))
    add_health(server, lambda: health.is_ready(gateway.registry), SERVICE, AnonymousReader())
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    try:
        bound_port = server.add_insecure_port(address)
    except RuntimeError as error:
        raise OSError(errno.EADDRINUSE, "Address already in use") from error
    await server.start()
    return server, bound_port


class _InferenceHandler(grpc.GenericRpcHandler):
    """The methods of the service, each from bytes to bytes."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._reader = MessageReader(gateway.proxy.budget, gateway.settings.max_body_bytes)
        channels = ChannelPool(gateway.registry, gateway.settings.max_body_bytes)
        self._proxy = GrpcProxy(gateway.registry, channels, gateway.settings.replica_credentials)
        self._streams = InferStreams(gateway, self._proxy, self._reader)
        methods: dict[str, Method] = {
            "ServerLive": self._live, "ServerReady": self._ready, "ServerMetadata": self._metadata,
            "RepositoryIndex": self._index, **dict.fromkeys(_MODEL_FIELDS, self._forward),
        }  # fmt: skip
        behaviours = {name: self._handle_unary(name, method) for name, method in methods.items()}
        self._handlers: Mapping[str, Any] = {
            name: grpc.stream_stream_rpc_method_handler(behaviour)
            for name, behaviour in (*behaviours.items(), ("ModelStreamInfer", self._handle_stream))
        }

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[Any, Any] | None:
        """Find the handler of a method; methods of Triton's service that are not offered answer with the reason."""
        service, _, name = handler_call_details.method.lstrip("/").partition("/")
        if service != SERVICE:
            return None
        return self._handlers.get(name) or grpc.stream_stream_rpc_method_handler(_not_offered)

    # All methods are registered as streams, which look the same on the wire: so nothing of a message is read before
    # the key has been checked, and none is read without memory for it.

    def _handle_unary(
        self, name: str, method: Method
    ) -> Callable[[AsyncIterator[bytes], Context], AsyncIterator[bytes]]:
        async def behaviour(messages: AsyncIterator[bytes], context: Context) -> AsyncIterator[bytes]:
            async with ObservedCall(SERVICE, name, context) as ids:
                call = await self._admit(name, context, ids)
                async with self._gateway.revocations.end_when_revoked(call.caller):
                    message, held = await self._read(messages, call)
                    try:
                        answer = await method(message, call)
                    finally:
                        self._gateway.proxy.budget.release(held, call.tenant)
                yield answer

        return behaviour

    async def _handle_stream(self, messages: AsyncIterator[bytes], context: Context) -> AsyncIterator[bytes]:
        async with ObservedCall(SERVICE, "ModelStreamInfer", context) as ids:
            call = await self._admit("ModelStreamInfer", context, ids)
            async with self._gateway.revocations.end_when_revoked(call.caller):
                async for answer in self._streams.answer(call, messages):
                    yield answer

    async def _read(self, messages: AsyncIterator[bytes], call: GrpcCall) -> tuple[bytes, int]:
        """Read the one message of a call, unless it can't matter; returns it and the bytes of memory held for it."""
        if call.method in _WITHOUT_MESSAGE:
            return b"", 0
        is_own = call.method not in _MODEL_FIELDS
        wait_s = min(self._gateway.settings.body_read_timeout_s, max(call.left_s, 0))
        async with self._reader.turn(call.tenant, wait_s):
            message = await read_first(messages, wait_s)
            if message is None:
                raise Malformed("The call ended without a message.")
        if is_own and len(message) > _MAX_OWN_BYTES:
            raise TooLarge(f"{call.method} takes messages of at most {_MAX_OWN_BYTES:,} bytes.")
        self._gateway.proxy.budget.take_arrived(len(message), call.tenant)
        return message, len(message)

    async def _admit(self, name: str, context: Context, trace: Ids) -> GrpcCall:
        """Check permission and rate limits; returns the call with its caller, deadline and ids."""
        gateway = self._gateway
        metadata = [(k, v) for k, v in context.invocation_metadata() or () if isinstance(v, str)]
        headers = {k.encode(): v.encode("utf-8", "replace") for k, v in metadata}
        context.set_trailing_metadata((("x-request-id", trace.request_id),))
        caller: Caller = LOCAL
        if name not in _ANONYMOUS:
            with span("authenticate"):
                address = str(context.peer()).rpartition(":")[0]  # of `ipv4:1.2.3.4:5` or `ipv6:%5B::1%5D:5`
                caller = await gateway.authenticate(headers, address)
                caller.require_scope("admin" if name in _LOADING else "infer")
                await gateway.limits.count(caller)
        now, left, settings = asyncio.get_running_loop().time(), context.time_remaining(), gateway.settings
        ends_at = now + min(math.inf if left is None else left, settings.stream_timeout_s or math.inf)
        pause_s = settings.request_timeout_s
        deadline = now + (pause_s if left is None else min(pause_s, left))
        return GrpcCall(f"/{SERVICE}/{name}", metadata, caller, trace, deadline, pause_s, ends_at)

    async def _forward(self, message: bytes, call: GrpcCall) -> bytes:
        name, model = call.method, read_text_field(message, _MODEL_FIELDS[call.method])
        if name == "ModelStatistics" and not model:
            return await self._proxy.call_each_service(call, message)
        try:
            call.service = self._gateway.registry.routes.find_service(model)
        except NotFound:
            if name == "ModelReady":
                return pb.ModelReadyResponse(ready=False).SerializeToString()
            raise
        if name == "ModelReady" and not self._gateway.registry.list_ready(call.service):
            return pb.ModelReadyResponse(ready=False).SerializeToString()
        if name.startswith("Repository"):
            self._gateway.audit.write(f"{call.tenant}/{call.caller.key}", name, model)
            return await self._proxy.broadcast(call, message)
        if name != "ModelInfer":
            return await self._proxy.call_unary(call, message)
        async with self._gateway.find_place(call.caller, call.service, call.deadline):
            answer = await self._proxy.call_unary(call, message)
        self._gateway.usage.add(call.tenant, model, {})
        return answer

    async def _live(self, _message: bytes, _call: GrpcCall) -> bytes:
        return pb.ServerLiveResponse(live=True).SerializeToString()

    async def _ready(self, _message: bytes, _call: GrpcCall) -> bytes:
        return pb.ServerReadyResponse(ready=health.is_ready(self._gateway.registry)).SerializeToString()

    async def _metadata(self, _message: bytes, _call: GrpcCall) -> bytes:
        return pb.ServerMetadataResponse(**dict[str, Any](oip_server.SERVER_METADATA)).SerializeToString()

    async def _index(self, message: bytes, _call: GrpcCall) -> bytes:
        try:
            only_ready = pb.RepositoryIndexRequest.FromString(message).ready
        except DecodeError as error:
            raise Malformed("The bytes are not a RepositoryIndexRequest.") from error
        index = await oip_server.list_repository(self._gateway, only_ready=only_ready)
        models = [pb.RepositoryIndexResponse.ModelIndex(**entry) for entry in index]
        return pb.RepositoryIndexResponse(models=models).SerializeToString()


async def _not_offered(_messages: AsyncIterator[bytes], context: Context) -> None:
    detail = "This method is not offered: shared memory, trace and log settings are up to the operator."
    await context.abort(grpc.StatusCode.UNIMPLEMENTED, detail)
