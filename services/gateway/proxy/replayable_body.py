"""Replayable body: a request body that is read once from the caller and can be sent again to another replica.

What has arrived is kept while a memory budget lasts, so that an upload survives the death of the replica it was going
to. A body of more than `MAX_BUFFERED_BYTES` is streamed while it arrives. Limits are checked before reading where the
caller declares a length, and while reading where it does not. Knows nothing about upstreams.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from typing import Any

from services.gateway.http.errors import SlowBody
from services.gateway.policy.memory_budget import MemoryBudget
from shared.errors import Cancelled, FoveaError, Malformed, QueueFull, TooLarge

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]

MAX_BUFFERED_BYTES = 2**20
"""Bodies that declare at most this many bytes are read whole before they are sent on: cheaper than streaming."""


def read_content_length(headers: MutableMapping[bytes, bytes], limit: int) -> int | None:
    """Read the declared length of a body: None when it comes in chunks, 0 when there is none.

    Raises:
        TooLarge: It declares more than `limit` bytes.
        Malformed: The length is not a number.
    """
    text = headers.get(b"content-length")
    if text is None:
        return None if b"transfer-encoding" in headers else 0
    if not text.isdigit():
        raise Malformed(f"The Content-Length {text[:40].decode('latin-1')!r} is not a number.")
    if int(text) > limit:
        raise build_too_large(int(text), limit)
    return int(text)


def build_too_large(size: int, limit: int) -> TooLarge:
    """Build the error for a body of at least `size` bytes."""
    detail = f"The body has {size:,} bytes or more; the limit is {limit:,}."
    return TooLarge(detail, hint="Send a smaller body, or raise FOVEA_MAX_BODY_BYTES.")


class ReplayableBody:
    """One request's body.

    Attributes:
        error: Why reading failed (too large, too slow, caller gone); the HTTP client hides what a body raises.
        on_failure: Called when reading fails; who waits for an answer to this body waits in vain then.
    """

    def __init__(
        self,
        receive: Receive,
        *,
        length: int | None,
        limit: int,
        pause_s: float,
        budget: MemoryBudget,
        tenant: str = "",
    ) -> None:
        """Wrap `receive` of a tenant; `length` is the declared length, `pause_s` the longest wait for a chunk."""
        self.length = length
        self.error: FoveaError | None = None
        self.on_failure: Callable[[], None] | None = None
        self._receive, self._limit, self._pause_s, self._budget = receive, limit, pause_s, budget
        self._tenant = tenant
        self._kept: list[bytes] = []
        self._reserved = 0
        self._size = 0
        self._joined: bytes | None = None
        self.complete = False
        self.replayable = True

    async def prefetch(self) -> None:
        """Read what is cheap to read: all of a small body, the first chunk of a large or chunked one."""
        if not self.complete:
            await self._read_chunk(must_keep=True)
        while not self.complete and self.length is not None and self.length <= MAX_BUFFERED_BYTES:
            await self._read_chunk(must_keep=True)

    def payload(self) -> bytes | AsyncIterator[bytes]:
        """What to send: bytes when all of a small body is here, chunks as they arrive otherwise."""
        return self._iterate_chunks() if (whole := self.whole()) is None else whole

    def whole(self) -> bytes | None:
        """All of a small body, where it is here; None otherwise."""
        if not self.complete or not self.replayable or self._size > MAX_BUFFERED_BYTES:
            return None
        if self._joined is None:
            self._joined = self._kept[0] if len(self._kept) == 1 else b"".join(self._kept)
        return self._joined

    def head(self) -> bytes:
        """All of a small body, the first chunk of another; after `prefetch`."""
        whole = self.whole()
        return (self._kept[0] if self._kept else b"") if whole is None else whole

    async def read_all(self) -> bytes:
        """Read all of it into memory.

        Raises:
            TooLarge: It outgrows the limit.
            QueueFull: It outgrows the memory budget for bodies.
        """
        while not self.complete:
            await self._read_chunk()
            if not self.replayable:
                raise QueueFull(
                    "There is no memory left to hold this body.", hint="Try again in a moment.", retry_after=1
                )
        return b"".join(self._kept)

    def release(self) -> None:
        """Return kept memory to the budget."""
        self._budget.release(self._reserved, self._tenant)
        self._reserved = 0
        self._kept = []
        self._joined = None

    async def _iterate_chunks(self) -> AsyncIterator[bytes]:
        index = 0
        while True:
            while index < len(self._kept):
                yield self._kept[index]
                index += 1
            if self.complete:
                return
            chunk = await self._read_chunk()
            if not self.replayable and chunk:
                yield chunk

    async def _read_chunk(self, *, must_keep: bool = False) -> bytes:
        try:
            async with asyncio.timeout(self._pause_s):
                message = await self._receive()
        except TimeoutError as error:
            detail = f"No byte of the body arrived for {self._pause_s:g} s."
            raise self._fail(SlowBody(detail, hint="Send the body without pauses.")) from error
        if message["type"] == "http.disconnect":
            raise self._fail(Cancelled("The caller went away while sending."))
        chunk: bytes = message.get("body", b"")
        self.complete = not message.get("more_body", False)
        if chunk:
            self._keep(chunk, must_keep)
        return chunk

    def _keep(self, chunk: bytes, must_keep: bool) -> None:
        self._size += len(chunk)
        if self._size > self._limit:
            raise self._fail(build_too_large(self._size, self._limit))
        reserved = self.replayable and self._budget.take(len(chunk), self._tenant)
        if reserved:
            self._reserved += len(chunk)
        if reserved or must_keep:
            self._kept.append(chunk)
        else:
            self.replayable = False

    def _fail(self, error: FoveaError) -> FoveaError:
        """Note why reading failed, and tell whoever waits."""
        self.error = error
        if self.on_failure is not None:
            self.on_failure()
        return error
