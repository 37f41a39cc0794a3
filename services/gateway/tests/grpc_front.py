"""A small gRPC replica and calls to the gateway's gRPC front, for tests."""

import asyncio
from collections.abc import AsyncIterator, Awaitable
from dataclasses import dataclass, field
from typing import Any

import grpc
import pytest

from services.gateway.grpc.server import SERVICE
from shared.rpc import open_inference_pb2 as pb

INFER = pb.ModelInferRequest(model_name="pranet", id="7", raw_input_contents=[b"\x00" * 1000]).SerializeToString()
ANSWER = b"one|" + INFER
"""Answer of the replica `one`."""


@dataclass
class Replica(grpc.GenericRpcHandler):
    """A gRPC server that answers every unary call with its name and the message, and notes the call."""

    name: str
    seen: list[tuple[str, dict[str, str], float]] = field(default_factory=list)
    fails: list[grpc.StatusCode] = field(default_factory=list)
    gone: asyncio.Event = field(default_factory=asyncio.Event)
    sleep_s: float = 0
    answer: bytes = b""
    reached: asyncio.Event = field(default_factory=asyncio.Event)
    holds: asyncio.Event | None = None

    def service(self, details: grpc.HandlerCallDetails) -> Any:

        async def unary(message: bytes, context: Any) -> bytes:
            sent = {k: v for k, v in context.invocation_metadata() if isinstance(v, str)}
            self.seen.append((details.method, sent, context.time_remaining()))
            if self.fails:
                trailers = (("retry-after", "3"),)
                await context.abort(self.fails.pop(0), f"{self.name} does not want to.", trailers)
            try:
                await asyncio.sleep(self.sleep_s)
            except asyncio.CancelledError:
                self.gone.set()
                raise
            return self.answer or self.name.encode() + b"|" + message

        async def stream(messages: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
            self.seen.append((details.method, {}, 0))
            try:
                async for message in messages:
                    self.reached.set()
                    if self.holds is not None:
                        await self.holds.wait()
                    yield self.name.encode() + b"|" + message
            except asyncio.CancelledError:
                self.gone.set()
                raise

        if details.method.endswith("ModelStreamInfer"):
            return grpc.stream_stream_rpc_method_handler(stream)
        return grpc.unary_unary_rpc_method_handler(unary)


async def call(channel: Any, method: str, message: bytes = b"", **options: Any) -> bytes:
    answer: bytes = await channel.unary_unary(f"/{SERVICE}/{method}")(message, **options)
    return answer


def open_stream(channel: Any, key: str | None = None, timeout: float = 60) -> Any:
    metadata = () if key is None else (("x-api-key", key),)
    return channel.stream_stream(f"/{SERVICE}/ModelStreamInfer")(metadata=metadata, timeout=timeout)


async def exchange(stream: Any, message: bytes = INFER) -> bytes:
    await stream.write(message)
    answer: bytes = await stream.read()
    return answer


async def refused(asking: Awaitable[Any], match: str | None = None) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError, match=match) as failed:
        await asking
    return failed.value
