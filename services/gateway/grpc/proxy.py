"""gRPC proxy: sends calls to the least loaded replica, under the same retry policy as the HTTP proxy.

Knows nothing about methods and messages; they are bytes here.
"""

import asyncio
import math
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import grpc

from fovea.api.replica import SCOPES_HEADER
from fovea.errors import DeadlineExceeded, FoveaError, NotReady
from services.gateway.http.request_context import DEADLINE_GRACE_S
from services.gateway.policy.caller import Caller
from services.gateway.proxy.retry import ReplicaRetryPolicy, RetryState, UpstreamLost, begin_attempt
from services.gateway.routing.replica import Dispatch, Replica
from services.gateway.routing.replica_registry import ReplicaRegistry
from shared.telemetry import Context, Span, context

CONNECT_TIMEOUT_S = 2.0
"""Longest wait for a connection before a stream is begun."""

_OUR_PREFIXES = ("grpc-", "x-fovea-")
_DROPPED = frozenset({"user-agent", "authorization", "x-api-key", "x-request-id", "traceparent", "content-type", "te"})


@dataclass(slots=True)
class GrpcCall:
    """One call on its way.

    Attributes:
        deadline: Event-loop time; of a stream, for its next message in either direction.
        pause_s: Seconds that may pass between two messages of a stream.
        ends_at: Event-loop time at which a stream ends, however lively; infinite for none.
        service: The service that answers it.
        refusal: Why a later message of its stream was refused, after which the stream ends.
    """

    path: str
    metadata: Sequence[tuple[str, str]]
    caller: Caller
    trace: Context
    deadline: float
    pause_s: float
    ends_at: float
    service: str = ""
    refusal: FoveaError | None = None
    timer: asyncio.Timeout | None = None

    @property
    def tenant(self) -> str:
        """Whose call it is."""
        return self.caller.tenant

    @property
    def method(self) -> str:
        """The method's name without its service."""
        return self.path.rpartition("/")[2]

    @property
    def left_s(self) -> float:
        """Seconds until the deadline."""
        return self.deadline - asyncio.get_running_loop().time()

    def extend(self) -> None:
        """Count the deadline of a stream anew: a message has just passed, or it begins."""
        self.deadline = min(asyncio.get_running_loop().time() + self.pause_s, self.ends_at)
        if self.timer is not None and not self.timer.expired():
            self.timer.reschedule(self.deadline + DEADLINE_GRACE_S)

    @property
    def upstream_metadata(self) -> list[tuple[str, str]]:
        """Metadata for the replica: the caller's without credentials and reserved names, then ours."""
        kept = [(k, v) for k, v in self.metadata if k not in _DROPPED and not k.startswith(_OUR_PREFIXES)]
        return [
            *kept,
            ("x-request-id", self.trace.request_id),
            ("traceparent", context().traceparent or self.trace.traceparent),
            ("x-fovea-tenant", self.tenant),
            (SCOPES_HEADER, self.caller.scope_header),
            ("x-fovea-deadline-ms", str(max(int(self.left_s * 1000), 1))),
        ]


class ChannelPool:
    """One channel per replica, opened at first use and given up when the replica is gone."""

    def __init__(self, registry: ReplicaRegistry, max_bytes: int) -> None:
        """Messages may have up to `max_bytes` on the way there, and any size on the way back."""
        self._registry, self._open = registry, dict[str, grpc.aio.Channel]()
        self._options = [
            ("grpc.max_send_message_length", max_bytes), ("grpc.max_receive_message_length", -1),
            ("grpc.initial_reconnect_backoff_ms", 100), ("grpc.min_reconnect_backoff_ms", 100),
            ("grpc.max_reconnect_backoff_ms", 1000), ("grpc.use_local_subchannel_pool", 1),
            ("grpc.enable_http_proxy", 0),  # as over HTTP: a proxy of the environment is for the world outside
        ]  # fmt: skip

    def connect(self, address: str) -> grpc.aio.Channel:
        """Get the channel to an address. That to a replica that is gone closes with its last call."""
        if address not in self._open:
            known = {r.record.grpc for s in self._registry.services for r in self._registry.list_alive(s)}
            self._open = {a: channel for a, channel in self._open.items() if a in known}
            self._open[address] = grpc.aio.insecure_channel(address, options=self._options)
        return self._open[address]


class GrpcProxy:
    """Forwards calls to replicas."""

    def __init__(self, registry: ReplicaRegistry, channels: ChannelPool, credentials: Mapping[str, str]) -> None:
        """Choose among the replicas of `registry`; `credentials` are metadata by which they know their gateway."""
        self._registry, self._channels, self._credentials = registry, channels, tuple(credentials.items())
        self._retry = ReplicaRetryPolicy(registry)

    async def call_unary(self, call: GrpcCall, message: bytes) -> bytes:
        """Answer one message from a replica.

        Raises:
            grpc.aio.AioRpcError: The replica's error for the call.
            NotReady: No replica is there, or came back in time.
            DeadlineExceeded: The deadline passed while waiting for one.
        """
        state = _start_retries(call)

        async def attempt(replica: Replica) -> bytes:
            channel, under_way = self._connect(replica), Dispatch(replica)
            try:
                with _begin_attempt(call, replica):
                    async with under_way:
                        return await self._send(channel, call, message)
            except TimeoutError as error:
                if not under_way.is_aborted:
                    raise
                raise self._build_hung(call) from error
            except grpc.aio.AioRpcError as error:
                lost = self._find_loss(error, channel, replica, state)
                if lost is None:
                    raise
                raise lost from error

        return await self._retry.run(state, attempt)

    async def call_stream(self, call: GrpcCall, first: bytes, rest: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        """Answer a stream of messages from one replica: the first that can be reached.

        Raises:
            grpc.aio.AioRpcError: The replica's error for the stream.
            NotReady: No replica is there, or came back in time.
            DeadlineExceeded: The deadline passed while waiting for one.
        """
        replica, channel = await self._connect_ready(call)
        replica.in_flight += 1
        call.extend()
        try:
            with _begin_attempt(call, replica):
                method: grpc.aio.StreamStreamMultiCallable[bytes, bytes] = channel.stream_stream(call.path)
                messages = _prepend(first, rest)
                metadata = (*call.upstream_metadata, *self._credentials)
                left_s = call.ends_at - asyncio.get_running_loop().time()
                answers = method(messages, timeout=None if left_s == math.inf else left_s, metadata=metadata)
                while (answer := await self._read_answer(replica, call, answers)) is not grpc.aio.EOF:
                    call.extend()
                    yield answer
        finally:
            replica.in_flight -= 1

    async def _read_answer(self, replica: Replica, call: GrpcCall, answers: Any) -> Any:
        """The next message of a stream, or `EOF`."""
        under_way = Dispatch(replica)
        try:
            async with asyncio.timeout_at(call.deadline + DEADLINE_GRACE_S) as call.timer, under_way:
                return await answers.read()
        except TimeoutError as error:
            if not under_way.is_aborted:
                raise DeadlineExceeded.build(is_stream=True, is_total=call.deadline >= call.ends_at) from error
            raise self._build_hung(call).answer from error
        finally:
            call.timer = None

    async def broadcast(self, call: GrpcCall, message: bytes) -> bytes:
        """Send one message to every replica in turn; returns the last answer, or raises the first error."""
        answer = b""
        replicas = [r for r in self._registry.list_alive(call.service) if r.record.grpc]
        for replica in replicas:
            answer = await self._send(self._connect(replica), call, message)
        if not replicas:
            raise _build_no_grpc(call.service)
        return answer

    async def call_each_service(self, call: GrpcCall, message: bytes) -> bytes:
        """Send one message to a replica of each service; encoded answers that are lists join by concatenation."""
        picked = [one for name in self._registry.services if (one := self._registry.pick(name)) and one.record.grpc]
        return b"".join([await self._send(self._connect(one), call, message) for one in picked])

    def _build_hung(self, call: GrpcCall) -> UpstreamLost:
        answer = NotReady(f"A replica of {call.service} hangs.", hint="Send the request again.", retry_after=1)
        return UpstreamLost("it hangs: its record is not renewed", answer, is_unseen=False, may_repeat=True)

    async def _connect_ready(self, call: GrpcCall) -> tuple[Replica, grpc.aio.Channel]:
        """Find a replica whose connection stands: a stream can't be sent twice."""

        async def attempt(replica: Replica) -> tuple[Replica, grpc.aio.Channel]:
            channel = self._connect(replica)
            try:
                async with asyncio.timeout(min(CONNECT_TIMEOUT_S, max(call.left_s, 0))):
                    await channel.channel_ready()
            except TimeoutError as error:
                self._registry.mark_suspect(replica)
                answer = self._retry.build_not_ready(call.service)
                raise UpstreamLost("no connection", answer, is_unseen=True, may_repeat=True) from error
            return replica, channel

        return await self._retry.run(_start_retries(call), attempt)

    def _connect(self, replica: Replica) -> grpc.aio.Channel:
        if replica.record.grpc is None:
            raise _build_no_grpc(replica.record.service)
        return self._channels.connect(replica.record.grpc)

    async def _send(self, channel: grpc.aio.Channel, call: GrpcCall, message: bytes) -> bytes:
        method: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(call.path)
        metadata = (*call.upstream_metadata, *self._credentials)
        return await method(message, timeout=max(call.left_s, 0.001), metadata=metadata)

    def _find_loss(
        self, error: grpc.aio.AioRpcError, channel: grpc.aio.Channel, replica: Replica, state: RetryState
    ) -> UpstreamLost | None:
        """The loss of a replica behind an error; None where the error is an answer for the caller."""
        if error.code() is not grpc.StatusCode.UNAVAILABLE:
            return None
        reason = error.details() or ""
        is_answer = channel.get_state() is grpc.ChannelConnectivity.READY or bool(error.trailing_metadata())
        if is_answer and not self._retry.has_untried(replica, state):
            return None
        if not is_answer:
            self._registry.mark_suspect(replica)
        is_unseen = is_answer or "failed to connect" in reason
        return UpstreamLost(reason, error, is_unseen=is_unseen, may_repeat=True)


def _begin_attempt(call: GrpcCall, replica: Replica) -> Span:
    name = call.path.removeprefix("/")
    return begin_attempt(name, replica, replica.record.grpc, {"rpc.system.name": "grpc", "rpc.method": name})


def _start_retries(call: GrpcCall) -> RetryState:
    return RetryState(call.service, call.trace.request_id, call.deadline, late=DeadlineExceeded)


async def _prepend(first: bytes, rest: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield first
    async for message in rest:
        yield message


def _build_no_grpc(service: str) -> NotReady:
    detail = f"No replica of {service} is ready to answer gRPC."
    return NotReady(detail, hint="`/readyz` shows which services are ready.", retry_after=5)
