"""A request body that is read once from the caller and can be sent again to another replica.

What has arrived is kept while a memory allowance lasts, so that an upload survives the death of the replica it was
going to. Reading is lazy: beyond `MAX_BUFFERED_BYTES` bytes a body flows through while it arrives. Limits are checked before reading
where the caller states a length, and while reading where it does not. Knows nothing about upstreams.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any

from services.gateway.http.errors import SlowBody
from shared.errors import Cancelled, FoveaError, Malformed, QueueFull, TooLarge

__all__ = ["MemoryBudget", "Receive", "ReplayableBody", "read_content_length"]

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]

MAX_BUFFERED_BYTES = 2**20
"""Bodies that state at most this many bytes are read whole before they are sent on, which is cheaper than streaming."""


@dataclass(slots=True)
class MemoryBudget:
    """Memory, in bytes, that kept pieces of all bodies may take together."""

    left: int

    def take(self, size: int) -> bool:
        """Reserve `size` bytes; False when there is not enough."""
        if size > self.left:
            return False
        self.left -= size
        return True


def read_content_length(headers: MutableMapping[bytes, bytes], limit: int) -> int | None:
    """The stated length of a body, None when it comes in chunks, 0 when there is none.

    Raises:
        TooLarge: It states more than `limit` bytes.
        Malformed: The length is no number.
    """
    text = headers.get(b"content-length")
    if text is None:
        return None if b"transfer-encoding" in headers else 0
    if not text.isdigit():
        raise Malformed(f"The Content-Length {text[:40].decode('latin-1')!r} is no number.")
    if int(text) > limit:
        raise build_too_large(int(text), limit)
    return int(text)


def build_too_large(size: int, limit: int) -> TooLarge:
    """The error for a body of (at least) `size` bytes."""
    detail = f"The body has {size:,} bytes or more; the limit is {limit:,}."
    return TooLarge(detail, hint="Send a smaller body, or raise FOVEA_MAX_BODY_BYTES.")


class ReplayableBody:
    """One request's body.

    Attributes:
        fault: Why reading failed (too large, too slow, caller gone); the upstream client hides what a body raises.
    """

    def __init__(
        self, receive: Receive, *, length: int | None, limit: int, pause_s: float, allowance: MemoryBudget
    ) -> None:
        """Wrap `receive`; `length` is the stated length, `pause_s` the longest wait for the next piece."""
        self.length = length
        self.fault: FoveaError | None = None
        self._receive, self._limit, self._pause_s, self._allowance = receive, limit, pause_s, allowance
        self._kept: list[bytes] = []
        self._reserved = 0
        self._size = 0
        self._whole: bytes | None = None
        self.complete = False
        self.replayable = True

    async def prefetch(self) -> None:
        """Read what is cheap to have: all of a small body, the first piece of a large or unstated one."""
        if not self.complete:
            await self._pull(must=True)
        while not self.complete and self.length is not None and self.length <= MAX_BUFFERED_BYTES:
            await self._pull(must=True)

    def payload(self) -> bytes | AsyncIterator[bytes]:
        """What to send: bytes when all of a small body is here, pieces as they come otherwise."""
        if self.complete and self.replayable and self._size <= MAX_BUFFERED_BYTES:
            if self._whole is None:
                self._whole = self._kept[0] if len(self._kept) == 1 else b"".join(self._kept)
            return self._whole
        return self._pieces()

    async def whole(self) -> bytes:
        """All of it, in memory.

        Raises:
            TooLarge: It outgrows the limit.
            QueueFull: It outgrows the memory set aside for bodies.
        """
        while not self.complete:
            await self._pull()
            if not self.replayable:
                raise QueueFull("There is no memory left to hold this body.", hint="Try again.", retry_after=1)
        return b"".join(self._kept)

    def release(self) -> None:
        """Give kept memory back."""
        self._allowance.left += self._reserved
        self._reserved = 0
        self._kept = []
        self._whole = None

    async def _pieces(self) -> AsyncIterator[bytes]:
        index = 0
        while True:
            while index < len(self._kept):
                yield self._kept[index]
                index += 1
            if self.complete:
                return
            piece = await self._pull()
            if not self.replayable and piece:
                yield piece

    async def _pull(self, *, must: bool = False) -> bytes:
        try:
            async with asyncio.timeout(self._pause_s):
                message = await self._receive()
        except TimeoutError as error:
            detail = f"No byte of the body arrived for {self._pause_s:g} s."
            self.fault = SlowBody(detail, hint="Send the body without pauses.")
            raise self.fault from error
        if message["type"] == "http.disconnect":
            self.fault = Cancelled("The caller went away while sending.")
            raise self.fault
        piece: bytes = message.get("body", b"")
        self.complete = not message.get("more_body", False)
        if piece:
            self._keep(piece, must)
        return piece

    def _keep(self, piece: bytes, must: bool) -> None:
        self._size += len(piece)
        if self._size > self._limit:
            self.fault = build_too_large(self._size, self._limit)
            raise self.fault
        reserved = self.replayable and self._allowance.take(len(piece))
        if reserved:
            self._reserved += len(piece)
        if reserved or must:
            self._kept.append(piece)
        else:
            self.replayable = False
