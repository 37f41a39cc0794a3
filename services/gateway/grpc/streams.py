"""Streams of inference: each message passes what a single call passes, from the rate and the budget to the ledger.

A message waits for a place at its service before it is sent on, and holds it until the next answer: replicas answer in
order. Knows nothing about keys.
"""

import asyncio
from collections import Counter, deque
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager, contextmanager
from typing import Final

from fovea.errors import DeadlineExceeded, FoveaError, Malformed, QueueFull
from services.gateway.gateway import Gateway
from services.gateway.grpc.proxy import GrpcCall, GrpcProxy
from services.gateway.policy.memory_budget import MessageReader
from shared.rpc.protobuf_fields import iterate_fields

MAX_STREAMS_PER_TENANT: Final = 16
"""Open streams of one tenant; each may hold one message."""

_MODEL_FIELD: Final = 1

MAX_TEXT_BYTES = 1024
"""Bytes that a name may have."""


def read_text_field(message: bytes, number: int) -> str:
    """Read the last value of field `number`, a string; empty where it is absent.

    Every known encoder writes fields in order of their numbers, so the search ends at the first one beyond. Raises
    Malformed: this is not a protobuf message, or has too many fields.
    """
    found = b""
    for field in iterate_fields(message):
        if field.number > number and found:
            break
        if field.number == number and field.kind == 2:
            if field.end - field.start > MAX_TEXT_BYTES:
                raise Malformed(f"Field {number} of the message is longer than any name.")
            found = message[field.start : field.end]
    try:
        return found.decode()
    except UnicodeDecodeError as error:
        raise Malformed(f"Field {number} of the message is not UTF-8 text.") from error


async def read_first(messages: AsyncIterator[bytes], wait_s: float) -> bytes | None:
    """Read the first message of a call; None where the call ends without one.

    Raises DeadlineExceeded: it does not arrive within `wait_s`.
    """
    try:
        async with asyncio.timeout(wait_s):
            return await anext(messages, None)
    except TimeoutError as error:
        raise DeadlineExceeded("The message did not arrive in time.", hint="Send it faster.") from error


class InferStreams:
    """Answers streams from replicas, so many of each tenant at a time."""

    def __init__(self, gateway: Gateway, proxy: GrpcProxy, reader: MessageReader) -> None:
        """Send through `proxy`; first messages are read in the turns of `reader`."""
        self._gateway, self._proxy, self._reader = gateway, proxy, reader
        self._open: Counter[str] = Counter()

    async def answer(self, call: GrpcCall, messages: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        """Answer the messages of a stream, whose first was counted when the call began.

        Raises:
            QueueFull: The tenant has too many streams open, or there is no memory for a message.
            RateLimited: The caller's rate is used up; what was sent before is answered first.
        """
        wait_s = min(self._gateway.settings.body_read_timeout_s, max(call.left_s, 0))
        with self._count(call.tenant):
            async with self._reader.turn(call.tenant, wait_s):
                first = await read_first(messages, wait_s)
            if first is None:
                return
            call.service = self._gateway.registry.routes.find_service(read_text_field(first, _MODEL_FIELD))
            passage = _Passage(self._gateway, call, messages)
            try:
                await passage.begin(first)
                async for answer in self._proxy.call_stream(call, first, passage.iterate_rest()):
                    await passage.note_answer()
                    yield answer
            finally:
                await passage.close()
        if call.refusal is not None:
            raise call.refusal

    @contextmanager
    def _count(self, tenant: str) -> Iterator[None]:
        if self._open[tenant] >= MAX_STREAMS_PER_TENANT:
            detail = f"{MAX_STREAMS_PER_TENANT} streams of this tenant are open, which is the limit."
            raise QueueFull(detail, hint="Send more messages in each stream.", retry_after=1)
        self._open[tenant] += 1
        try:
            yield
        finally:
            self._open[tenant] -= 1
            if not self._open[tenant]:
                del self._open[tenant]


class _Passage:
    """The messages of one stream on their way to a replica: their places and their memory."""

    def __init__(self, gateway: Gateway, call: GrpcCall, messages: AsyncIterator[bytes]) -> None:
        self._gateway, self._call, self._messages = gateway, call, messages
        self._places: deque[tuple[str, AbstractAsyncContextManager[None]]] = deque()
        self._held = 0

    async def begin(self, message: bytes) -> None:
        """Take the place and the memory of a message, for which the memory of the one before is released."""
        budget, call = self._gateway.proxy.budget, self._call
        budget.release(self._held, call.tenant)
        self._held = 0
        if not budget.take(len(message), call.tenant):
            detail = "There is no memory left to hold this message."
            raise QueueFull(detail, hint="Try again in a moment.", retry_after=1)
        self._held = len(message)
        place = self._gateway.find_place(call.caller, call.service, call.deadline)
        await place.__aenter__()
        self._places.append((read_text_field(message, _MODEL_FIELD), place))

    async def iterate_rest(self) -> AsyncIterator[bytes]:
        """The messages after the first, up to the one that may not pass; the call notes why."""
        async for message in self._messages:
            self._call.extend()
            try:
                await self._gateway.limits.count(self._call.caller)
                await self.begin(message)
            except FoveaError as error:
                self._call.refusal = error
                return
            yield message

    async def note_answer(self) -> None:
        """Release the place of the oldest message, and write it into the ledger."""
        if self._places:
            model, place = self._places.popleft()
            await place.__aexit__(None, None, None)
            self._gateway.usage.add(self._call.tenant, model, {})

    async def close(self) -> None:
        """Release what is left."""
        self._gateway.proxy.budget.release(self._held, self._call.tenant)
        self._held = 0
        while self._places:
            await self._places.popleft()[1].__aexit__(None, None, None)
