"""The standard gRPC health service (`grpc.health.v1`). The caller defines readiness.

Anybody may ask, so messages are read apart from those of callers with a key; one poll serves the few calls that watch.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any, Final

import grpc
from google.protobuf.message import DecodeError
from grpc_health.v1 import health_pb2

from fovea.errors import DeadlineExceeded, FoveaError, Malformed, QueueFull, TooLarge
from services.gateway.grpc.status import Context, abort

MAX_READS: Final = 3
"""Messages that are read at a time; gRPC may hold the largest message for each."""

MAX_BYTES: Final = 1024
"""Bytes of such a message: none has more than a name."""

READ_TIMEOUT_S: Final = 0.5
"""Time for a message: an honest one comes with its call. gRPC shows no message before all of it has arrived, so this
also bounds what it holds for one: what a line carries meanwhile."""


class AnonymousReader:
    """Reads one message of each call."""

    def __init__(self) -> None:
        self._waiting: dict[asyncio.Timeout, None] = {}  # oldest first

    async def read(self, messages: AsyncIterator[bytes]) -> bytes:
        """Read the one message of a call.

        Raises:
            QueueFull: Newer calls pushed this one out.
            DeadlineExceeded: The message does not arrive in time.
            TooLarge: It has more than a name.
            Malformed: There is none.
        """
        if len(self._waiting) >= MAX_READS:
            oldest = next(iter(self._waiting))
            del self._waiting[oldest]
            if not oldest.expired():
                oldest.reschedule(0)
        limit = asyncio.timeout(READ_TIMEOUT_S)
        self._waiting[limit] = None
        try:
            async with limit:
                message = await anext(messages, None)
        except TimeoutError as error:
            if limit not in self._waiting:
                raise QueueFull("Newer calls came before the message of this one.", retry_after=1) from error
            raise DeadlineExceeded("The message did not arrive in time.", hint="Send it with the call.") from error
        finally:
            self._waiting.pop(limit, None)
        if message is None:
            raise Malformed("The call ended without a message.")
        if len(message) > MAX_BYTES:
            raise TooLarge(f"This method takes messages of at most {MAX_BYTES:,} bytes.")
        return message


MAX_WATCHES: Final = 100
"""Calls that watch at a time; whoever comes later can still check."""

_HEALTH_SERVICE: Final = "grpc.health.v1.Health"
_CHECK_INTERVAL_S: Final = 0.5


def add_health(server: grpc.aio.Server, is_ready: Callable[[], bool], service: str, reader: AnonymousReader) -> None:
    """Add health for the whole server (`""`) and for `service`, both serving while `is_ready()`."""
    server.add_generic_rpc_handlers((_Health(is_ready, service, reader),))


class _Health(grpc.GenericRpcHandler):
    """Answers with the current state."""

    def __init__(self, is_ready: Callable[[], bool], service: str, reader: AnonymousReader) -> None:
        self._is_ready, self._known, self._reader = is_ready, frozenset({"", service, _HEALTH_SERVICE}), reader
        self._watches = 0
        self._woken = asyncio.Event()
        self._poll: asyncio.Task[None] | None = None
        self._handlers: dict[str, Any] = {
            f"/{_HEALTH_SERVICE}/{name}": grpc.stream_stream_rpc_method_handler(
                method, response_serializer=health_pb2.HealthCheckResponse.SerializeToString
            )
            for name, method in (("Check", self._check), ("Watch", self._watch))
        }

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[Any, Any] | None:
        handler: grpc.RpcMethodHandler[Any, Any] | None = self._handlers.get(handler_call_details.method)
        return handler

    async def _check(self, messages: AsyncIterator[bytes], context: Context) -> AsyncIterator[Any]:
        service = await self._read(messages, context)
        if service not in self._known:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"There is no service {service!r}.")
        yield self._status(service)

    async def _watch(self, messages: AsyncIterator[bytes], context: Context) -> AsyncIterator[Any]:
        """The same, now and after every change."""
        if self._watches >= MAX_WATCHES:
            detail = f"{MAX_WATCHES} calls watch already, which is the limit."
            await abort(context, QueueFull(detail, hint="Use Check.", retry_after=5))
        self._watches += 1
        try:
            service, last = await self._read(messages, context), None
            if self._poll is None:
                self._poll = asyncio.create_task(self._wake_watches())
            while True:
                if (status := self._status(service)) != last:
                    yield (last := status)
                await self._woken.wait()
        finally:
            self._watches -= 1

    async def _wake_watches(self) -> None:
        """Have every call that watches look again at intervals, as long as there is one."""
        while self._watches:
            await asyncio.sleep(_CHECK_INTERVAL_S)
            self._woken.set()
            self._woken = asyncio.Event()
        self._poll = None

    async def _read(self, messages: AsyncIterator[bytes], context: Context) -> str:
        try:
            message = await self._reader.read(messages)
        except FoveaError as error:
            await abort(context, error)
        try:
            service: str = health_pb2.HealthCheckRequest.FromString(message).service
        except DecodeError:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "The bytes are not a HealthCheckRequest.")
        return service

    def _status(self, service: str) -> Any:
        response = health_pb2.HealthCheckResponse
        if service not in self._known:
            return response(status=response.SERVICE_UNKNOWN)
        return response(
            status=response.SERVING if service == _HEALTH_SERVICE or self._is_ready() else response.NOT_SERVING
        )
