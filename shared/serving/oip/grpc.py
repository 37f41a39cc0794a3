"""Open Inference v2 over gRPC, next to the standard health and reflection services.

The messages are our own package's, served under the public name `inference.GRPCInferenceService`
(docs/adr/0003-open-inference.md).
"""

from __future__ import annotations

import asyncio
import errno
import math
import time
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final, TypeVar

import grpc
from google.protobuf.json_format import ParseDict
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass

from fovea.api.problem import oip_error
from fovea.api.replica import SCOPES_HEADER
from fovea.errors import FoveaError, Malformed, TooLarge
from shared import telemetry
from shared.registry import CallContext
from shared.rpc import open_inference_pb2 as pb
from shared.rpc.oip_proto import decode_request, encode_answer
from shared.rpc.protobuf_fields import iterate_fields
from shared.serving.auth_guard import GatewayOnlyInterceptor
from shared.serving.host import Host
from shared.serving.http.errors import to_safe_error
from shared.serving.oip import metadata
from shared.serving.oip.grpc_health_reflection import SERVICE, add_standard_services
from shared.serving.watched_work import CURRENT_RUN
from shared.settings import Settings

Context = grpc.aio.ServicerContext[Any, Any]
Item = TypeVar("Item")
Result = TypeVar("Result")
Method = Callable[[Any, CallContext], Awaitable[Message | dict[str, Any]]]

# Bytes of an error's text: it travels as a header, percent-encoded, and those are limited to 8 KiB.
_MAX_DETAIL_BYTES: Final = 2000
# Bytes of a message above which elements are taken one by one off the event loop only.
_OFF_LOOP_BYTES: Final = 64 * 1024
# Bytes of a message that are decoded element by element: typed contents, names, parameters.
_MAX_DECODED_BYTES: Final = 16 * 2**20
_METHODS: Final[list[Any]] = list(pb.DESCRIPTOR.services_by_name["GRPCInferenceService"].methods)
_RAW_FIELD: Final = pb.ModelInferRequest.DESCRIPTOR.fields_by_name["raw_input_contents"].number


async def serve_grpc(host: Host, bind: str, port: int, settings: Settings) -> tuple[grpc.aio.Server, int]:
    """Start a server for a host, which may still be loading, on an address and a port; 0 takes a free one.

    Returns the running server (stop it with `await server.stop(grace)`), and its port. Raises OSError: it is in use.
    """
    options = [
        ("grpc.max_receive_message_length", settings.max_body_bytes),
        ("grpc.max_send_message_length", -1),  # what our own models answer may be larger than what they were sent
        ("grpc.so_reuseport", 0),  # a port in use is an error, and not shared in silence
    ]
    server = grpc.aio.server(options=options, interceptors=[GatewayOnlyInterceptor(settings)])
    server.add_generic_rpc_handlers((_OpenInferenceService(host, settings),))
    add_standard_services(server, host)
    address = f"[{bind}]:{port}" if ":" in bind else f"{bind}:{port}"
    try:
        taken = server.add_insecure_port(address)
    except RuntimeError as error:
        message = f"gRPC can't listen on {address}"
        raise OSError(errno.EADDRINUSE, message) from error
    await server.start()
    return server, taken


class _OpenInferenceService(grpc.GenericRpcHandler):
    """The methods of the service: each takes a message and a CallContext, and returns a message or a dict."""

    def __init__(self, host: Host, settings: Settings) -> None:
        self._host = host
        self._settings = settings
        self._methods_by_name: Mapping[str, Method] = {
            **dict.fromkeys(_LOOKS, self._look),
            "ModelMetadata": self._model_metadata,
            "ModelInfer": self._infer,
            "ModelConfig": self._config,
            "RepositoryModelLoad": self._load,
            "RepositoryModelUnload": self._unload,
        }
        self._handlers = {f"/{SERVICE}/{method.name}": self._handler(method) for method in _METHODS}

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[Any, Any] | None:
        """The handler of a method; methods of Triton's service that are not offered get an error."""
        path = handler_call_details.method
        if found := self._handlers.get(path):
            return found
        return grpc.unary_unary_rpc_method_handler(_refuse_method) if path.startswith(f"/{SERVICE}/") else None

    def _handler(self, method: Any) -> grpc.RpcMethodHandler[Any, Any]:
        request, response = GetMessageClass(method.input_type), GetMessageClass(method.output_type)
        kind: Any = grpc.unary_unary_rpc_method_handler
        behaviour: Any
        if method.name == "ModelStreamInfer":
            kind, behaviour = grpc.stream_stream_rpc_method_handler, self._stream_infer
        else:
            behaviour = self._unary(method.name, self._methods_by_name[method.name], request, response)
        handler: grpc.RpcMethodHandler[Any, Any] = kind(behaviour, response_serializer=response.SerializeToString)
        return handler

    # Around every call.

    def _unary(
        self, name: str, method: Method, request: type[Any], response: type[Any]
    ) -> Callable[[bytes, Context], Awaitable[Any]]:
        async def behaviour(data: bytes, context: Context) -> Any:
            try:
                answer = await self._serve(name, method, await _parse(request, data), context)
            except FoveaError as error:
                await context.abort(grpc.StatusCode[error.grpc], _sentence(error))
            return ParseDict(answer, response()) if isinstance(answer, dict) else answer

        return behaviour

    async def _stream_infer(
        self, messages: AsyncIterator[bytes], context: Context
    ) -> AsyncIterator[pb.ModelStreamInferResponse]:
        """Answer each request of a stream, in order; one that fails gets its error, and the stream goes on."""

        async def infer_one(data: bytes) -> pb.ModelStreamInferResponse:
            message = await _parse(pb.ModelInferRequest, data)
            try:
                answer = await self._serve("ModelStreamInfer", self._infer, message, context)
            except FoveaError as error:
                failed = pb.ModelInferResponse(id=getattr(message, "id", ""))
                return pb.ModelStreamInferResponse(error_message=_sentence(error), infer_response=failed)
            if (flag := message.parameters.get("triton_enable_empty_final_response")) and flag.bool_param:
                answer.parameters["triton_final_response"].bool_param = True
            return pb.ModelStreamInferResponse(infer_response=answer)

        async for answer in map_in_order(messages, infer_one, ahead=self._settings.max_batch_size):
            yield answer

    async def _serve(self, name: str, method: Method, message: Any, context: Context) -> Any:
        """Run a method in the caller's context: ids, trace, deadline, metrics; any failure becomes a FoveaError."""
        headers = {key: value for key, value in context.invocation_metadata() or () if isinstance(value, str)}
        ids = telemetry.fresh_context(headers.get("x-request-id"), headers.get("traceparent"), self._host.service)
        name_sent = message.model_name if isinstance(message, pb.ModelInferRequest) else ""
        model = name_sent if name_sent in self._host.names() else ""  # unknown names would swell the metrics
        seconds, tenant = _timeout_seconds(context, headers, self._settings), headers.get("x-fovea-tenant", "local")
        run = CallContext(deadline=time.monotonic() + seconds, tenant=tenant)
        if (scopes := headers.get(SCOPES_HEADER)) is not None:
            run.scopes = frozenset(scopes.split(","))
        CURRENT_RUN.set(run)
        fields = {"request_id": ids.request_id, "traceparent": ids.traceparent, "service": ids.service}
        trailers = [("x-request-id", ids.request_id)]
        server = telemetry.begin_rpc_span(SERVICE, name, ids.parent, ids.request_id)
        server.set_attributes({"fovea.model": model or None, "fovea.tenant": tenant})
        with (
            telemetry.bind(**fields, model=model),
            server.activate(),
            _count_call(ids.service, model, f"grpc {name}", server),
        ):
            try:
                if isinstance(message, FoveaError):
                    raise message  # noqa: TRY301  # the bytes were not a message, see `_parse`
                return await method(message, run)
            except asyncio.CancelledError:
                run.cancel()
                raise
            except Exception as error:
                failure = to_safe_error(error, "The service")
                if failure.retry_after is not None:
                    trailers.append(("retry-after", str(math.ceil(failure.retry_after))))
                raise failure from error
            finally:
                context.set_trailing_metadata(tuple(trailers))

    # The methods that are more than a look at the host.

    async def _model_metadata(self, message: pb.ModelMetadataRequest, _run: CallContext) -> dict[str, Any]:
        return await metadata.describe_model(self._host, message.name, message.version)

    async def _config(self, message: pb.ModelConfigRequest, _run: CallContext) -> dict[str, Any]:
        return {"config": await metadata.describe_config(self._host, message.name, message.version)}

    async def _look(self, message: Any, _run: CallContext) -> dict[str, Any]:
        return _LOOKS[message.DESCRIPTOR.name.removesuffix("Request")](self._host, message)

    async def _load(self, message: pb.RepositoryModelLoadRequest, _run: CallContext) -> dict[str, Any]:
        await metadata.load_model(self._host, message.model_name, message.parameters)
        return {}

    async def _unload(self, message: pb.RepositoryModelUnloadRequest, _run: CallContext) -> dict[str, Any]:
        await self._host.unload(message.model_name)
        return {}

    async def _infer(self, message: pb.ModelInferRequest, run: CallContext) -> pb.ModelInferResponse:
        await self._host.wake(message.model_name)
        self._host.find_loaded(message.model_name, message.model_version)
        with telemetry.stage("pre"):
            if _is_slow_to_decode(message):
                call = await asyncio.to_thread(decode_request, message)
            else:
                call = decode_request(message)
        answer = await self._host.answer(call, run)
        with telemetry.stage("post"):
            return encode_answer(answer, call)


@contextmanager
def _count_call(service: str, model: str, route: str, server: telemetry.Span) -> Iterator[None]:
    """Count one call under its gRPC status, which its span gets, too."""
    started, status = time.perf_counter(), "OK"
    with telemetry.IN_FLIGHT.labels(service).track_inprogress():
        try:
            yield
        except FoveaError as error:
            status = error.grpc
            telemetry.ERRORS.labels(service, model, error.code).inc()
            raise
        except asyncio.CancelledError:
            status = "CANCELLED"
            raise
        finally:
            telemetry.REQUESTS.labels(service, model, route, status).inc()
            telemetry.observe(telemetry.REQUEST_LATENCY.labels(service, route), time.perf_counter() - started)
            telemetry.finish_rpc_span(server, status)
            server.end()


def _is_model_ready(host: Host, message: pb.ModelReadyRequest) -> bool:
    """Yes or no, for unknown and unloaded models alike."""
    try:
        host.check_ready(message.name, message.version)
    except FoveaError:
        return False
    return True


_LOOKS: Final[Mapping[str, Callable[[Host, Any], dict[str, Any]]]] = {
    "ServerLive": lambda _host, _message: {"live": True},
    "ServerReady": lambda host, _message: {"ready": host.ready},
    "ModelReady": lambda host, message: {"ready": _is_model_ready(host, message)},
    "ServerMetadata": lambda host, _message: metadata.describe_server(host),
    "ModelStatistics": lambda host, message: metadata.collect_statistics(host, message.name, message.version),
    "RepositoryIndex": lambda host, message: {"models": metadata.list_models(host, ready=message.ready)},
}
"""Method → the answer that a look at the host gives."""


async def _refuse_method(_message: bytes, context: Context) -> bytes:
    detail = "This method is not offered: shared memory, trace and log settings stay with the operator."
    await context.abort(grpc.StatusCode.UNIMPLEMENTED, detail)


def _is_slow_to_decode(message: pb.ModelInferRequest) -> bool:
    """Whether decoding takes elements one by one, and many of them."""
    # `ByteSize` serialises the message, so it is asked last.
    one_by_one = not message.raw_input_contents or any(tensor.datatype == "BYTES" for tensor in message.inputs)
    return one_by_one and message.ByteSize() > _OFF_LOOP_BYTES


async def _parse(kind: type[Any], data: bytes) -> Any:
    """The message that `data` holds, or the error of a bad one; a large one is parsed off the event loop."""
    try:
        _check_fields(data)
        return await asyncio.to_thread(kind.FromString, data) if len(data) > _OFF_LOOP_BYTES else kind.FromString(data)
    except FoveaError as error:
        return error
    except DecodeError:
        return Malformed(f"The bytes are not a {kind.__name__} message.")


def _check_fields(data: bytes) -> None:
    """Check what a message would take once it is decoded: fields of a byte or two become objects of a hundred.

    Raises Malformed: it has more fields than any request; TooLarge: it has too much besides raw tensors.
    """
    decoded = sum(field.end - field.start for field in iterate_fields(data) if field.number != _RAW_FIELD)
    if decoded > _MAX_DECODED_BYTES:
        detail = f"The message has {decoded:,} bytes besides raw tensors; the limit is {_MAX_DECODED_BYTES:,}."
        raise TooLarge(detail, hint="Send tensors in raw_input_contents.")


def _sentence(error: FoveaError) -> str:
    return oip_error(error)["error"].encode()[:_MAX_DETAIL_BYTES].decode(errors="ignore")


def _timeout_seconds(context: Context, headers: Mapping[str, str], settings: Settings) -> float:
    """Seconds that the caller allows: gRPC's own deadline, the gateway's header, or the setting."""
    try:
        stated = float(headers.get("x-fovea-deadline-ms", "")) / 1000
    except ValueError:
        stated = settings.request_timeout_s
    left = context.time_remaining()
    return min(stated if stated >= 0 else settings.request_timeout_s, math.inf if left is None else left)


async def map_in_order(
    items: AsyncIterable[Item], work: Callable[[Item], Awaitable[Result]], *, ahead: int
) -> AsyncIterator[Result]:
    """Yield `work(item)` for every item, in order; closing the iterator cancels running items.

    Items are read only as fast as results are taken; at most `ahead` run or wait to be taken. Each runs as a task of
    its own, so that neighbours can share a micro-batch. An error of reading or working is raised when its turn comes.
    """
    slots = asyncio.Semaphore(ahead)
    started: asyncio.Queue[asyncio.Future[Result] | None] = asyncio.Queue()

    async def read() -> None:
        async for item in items:
            await slots.acquire()
            started.put_nowait(asyncio.ensure_future(work(item)))

    reader = asyncio.create_task(read())
    reader.add_done_callback(lambda _: started.put_nowait(None))
    try:
        while (task := await started.get()) is not None:
            yield await task
            slots.release()
        await reader
    finally:
        reader.cancel()
        while not started.empty():
            if task := started.get_nowait():
                task.cancel()
