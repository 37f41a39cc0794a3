"""gRPC calls to replicas: the least loaded one first, another one when it is out of reach, until the deadline.

Knows nothing about methods and messages; they are bytes here.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field

import grpc

from services.gateway.routing.replica_registry import Replica, ReplicaRegistry
from shared.errors import DeadlineExceeded, NotReady
from shared.telemetry import Context, log

__all__ = ["ChannelPool", "GrpcCall", "GrpcProxy"]

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.05, 1.0

CONNECT_S = 2.0
"""Longest wait for a connection before a stream is begun."""

DEATHS = 3
"""Connections that may break under one call before we suspect the call itself of killing replicas."""

_OURS = ("grpc-", "x-fovea-")
_DROPPED = frozenset({"user-agent", "authorization", "x-api-key", "x-request-id", "traceparent", "content-type", "te"})


@dataclass(slots=True)
class GrpcCall:
    """One call on its way: method, who asks, until when (`time.monotonic()`), and of which service."""

    path: str
    metadata: Sequence[tuple[str, str]]
    tenant: str
    ids: Context
    deadline: float
    service: str = ""
    tried: set[str] = field(default_factory=set)
    deaths: int = 0
    pause: float = FIRST_PAUSE_S

    @property
    def method(self) -> str:
        """The method's name without its service."""
        return self.path.rpartition("/")[2]

    @property
    def left_s(self) -> float:
        """Seconds until the deadline."""
        return self.deadline - time.monotonic()

    @property
    def sent(self) -> list[tuple[str, str]]:
        """Metadata for the replica: the caller's without credentials and reserved names, then ours."""
        kept = [(k, v) for k, v in self.metadata if k not in _DROPPED and not k.startswith(_OURS)]
        return [
            *kept,
            ("x-request-id", self.ids.request_id),
            ("traceparent", self.ids.traceparent),
            ("x-fovea-tenant", self.tenant),
            ("x-fovea-deadline-ms", str(max(int(self.left_s * 1000), 1))),
        ]


class ChannelPool:
    """One channel per replica, opened at first use and closed when the replica is gone."""

    def __init__(self, fleet: ReplicaRegistry, max_bytes: int) -> None:
        """Messages may have up to `max_bytes` on the way there, and any size on the way back."""
        self._fleet = fleet
        self._open: dict[str, grpc.aio.Channel] = {}
        self._options = [
            ("grpc.max_send_message_length", max_bytes),
            ("grpc.max_receive_message_length", -1),
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.min_reconnect_backoff_ms", 100),
            ("grpc.max_reconnect_backoff_ms", 1000),
            ("grpc.use_local_subchannel_pool", 1),
        ]

    async def of(self, address: str) -> grpc.aio.Channel:
        """The channel to an address."""
        if address not in self._open:
            known = {t.replica.grpc for s in self._fleet.services for t in self._fleet.alive(s)}
            for gone in [a for a in self._open if a not in known]:
                await self._open.pop(gone).close()
            self._open[address] = grpc.aio.insecure_channel(address, options=self._options)
        return self._open[address]


class GrpcProxy:
    """Passes calls on."""

    def __init__(self, fleet: ReplicaRegistry, channels: ChannelPool) -> None:
        """Choose among the replicas of `fleet`."""
        self._fleet, self._channels = fleet, channels

    async def unary(self, call: GrpcCall, message: bytes) -> bytes:
        """Answer one message from a replica.

        Raises:
            grpc.aio.AioRpcError: What the replica ended the call with.
            NotReady: No replica is there, or came back in time.
        """
        while True:
            target, channel = await self._next(call)
            target.in_flight += 1
            try:
                return await self._send(channel, call, message)
            except grpc.aio.AioRpcError as error:
                await self._regret(call, target, channel, error)
            finally:
                target.in_flight -= 1

    async def everywhere(self, call: GrpcCall, message: bytes) -> bytes:
        """Send one message to every replica in turn; the last answer is handed back, or the first error raised."""
        answer = b""
        targets = [t for t in self._fleet.alive(call.service) if t.replica.grpc]
        for target in targets:
            answer = await self._send(await self._channels.of(str(target.replica.grpc)), call, message)
        if not targets:
            raise _nobody(call)
        return answer

    async def joined(self, call: GrpcCall, message: bytes) -> bytes:
        """Send one message to a replica of each service; encoded answers that are lists join by concatenation."""
        answers = []
        for service in self._fleet.services:
            target = self._fleet.pick(service)
            if target is not None and target.replica.grpc:
                answers.append(await self._send(await self._channels.of(target.replica.grpc), call, message))
        return b"".join(answers)

    async def stream(self, call: GrpcCall, first: bytes, rest: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        """Answer a stream of messages from one replica: the first that can be reached.

        Raises:
            grpc.aio.AioRpcError: What the replica ended the stream with.
            NotReady: No replica is there, or came back in time.
        """
        target, channel = await self._reached(call)
        target.in_flight += 1
        try:
            method: grpc.aio.StreamStreamMultiCallable[bytes, bytes] = channel.stream_stream(call.path)
            async for answer in method(_chained(first, rest), timeout=max(call.left_s, 0.001), metadata=call.sent):
                yield answer
        finally:
            target.in_flight -= 1

    async def _reached(self, call: GrpcCall) -> tuple[Replica, grpc.aio.Channel]:
        """A replica whose connection stands: a stream can't be sent twice."""
        while True:
            target, channel = await self._next(call)
            try:
                async with asyncio.timeout(min(CONNECT_S, max(call.left_s, 0))):
                    await channel.channel_ready()
            except TimeoutError:
                self._fleet.suspect(target)
                await self._tried(call, target, "no connection")
            else:
                return target, channel

    async def _send(self, channel: grpc.aio.Channel, call: GrpcCall, message: bytes) -> bytes:
        method: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(call.path)
        return await method(message, timeout=max(call.left_s, 0.001), metadata=call.sent)

    async def _next(self, call: GrpcCall) -> tuple[Replica, grpc.aio.Channel]:
        """The next replica to try, waiting for one if the service had one a short while ago."""
        while True:
            if call.left_s <= 0:
                raise DeadlineExceeded("The deadline of the call passed before it was answered.")
            target = self._fleet.pick(call.service, call.tried)
            if target is not None and target.replica.grpc:
                return target, await self._channels.of(target.replica.grpc)
            if target is not None or not self._fleet.recovering(call.service):
                raise _nobody(call)
            await self._rest(call)

    async def _rest(self, call: GrpcCall) -> None:
        await asyncio.sleep(max(min(call.pause, call.left_s), 0))
        call.pause = min(2 * call.pause, LONGEST_PAUSE_S)
        call.tried.clear()

    async def _regret(
        self, call: GrpcCall, target: Replica, channel: grpc.aio.Channel, error: grpc.aio.AioRpcError
    ) -> None:
        """Prepare to try again, or raise the error where that makes no sense."""
        if error.code() is not grpc.StatusCode.UNAVAILABLE:
            raise error
        reason = error.details() or ""
        told = channel.get_state() is grpc.ChannelConnectivity.READY or bool(error.trailing_metadata())
        others = [t for t in self._fleet.ready(call.service) if t.id not in call.tried and t is not target]
        call.deaths += not told and "failed to connect" not in reason
        if (told and not others) or call.deaths > DEATHS:
            raise error
        if not told:
            self._fleet.suspect(target)
        await self._tried(call, target, reason)

    async def _tried(self, call: GrpcCall, target: Replica, reason: str) -> None:
        log().warning("lost a replica", request_id=call.ids.request_id, replica=target.id, reason=reason)
        if target.id in call.tried:
            await self._rest(call)
        call.tried.add(target.id)


async def _chained(first: bytes, rest: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield first
    async for message in rest:
        yield message


def _nobody(call: GrpcCall) -> NotReady:
    detail = f"No replica of {call.service} is ready to answer gRPC."
    return NotReady(detail, hint="`/readyz` says who is ready.", retry_after=5)
