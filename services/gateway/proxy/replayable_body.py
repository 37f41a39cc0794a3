"""Replayable body: a request body that is read once from the caller and can be sent again to another replica.

Arrived chunks are kept while a memory budget lasts, so that an upload survives the death of the replica it was going
to. A body of more than `MAX_BUFFERED_BYTES` is streamed while it arrives. Knows nothing about upstreams.
"""

from collections.abc import AsyncIterator, Callable

from fovea.errors import Cancelled, FoveaError, QueueFull
from services.gateway.policy.memory_budget import MemoryBudget
from shared.asgi.body import BoundedBody

MAX_BUFFERED_BYTES = 2**20
"""Bodies that declare at most this many bytes are read whole before they are sent on: cheaper than streaming."""


class ReplayableBody:
    """One request's body.

    Attributes:
        on_failure: Called when reading fails; who waits for an answer to this body waits in vain then.
    """

    def __init__(self, body: BoundedBody, *, length: int | None, budget: MemoryBudget, tenant: str = "") -> None:
        """Wrap a body of a tenant, unread; `length` is the declared length."""
        self.length = length
        self.on_failure: Callable[[], None] | None = None
        self._body, self._budget, self._tenant = body, budget, tenant
        self._kept: list[bytes] = []
        self._reserved = 0
        self._joined: bytes | None = None
        self.replayable = True

    @property
    def complete(self) -> bool:
        """Whether all of it has arrived."""
        return self._body.complete

    @property
    def error(self) -> FoveaError | None:
        """Why reading failed (too large, too slow, caller gone); the HTTP client hides what a body raises."""
        return self._body.error

    @error.setter
    def error(self, error: FoveaError) -> None:
        self._body.error = error

    async def prefetch(self) -> None:
        """Read what is cheap to read: all of a small body, the first chunk of a large or chunked one."""
        if not self.complete:
            await self._read_chunk(must_keep=True)
        while not self.complete and self.length is not None and self.length <= MAX_BUFFERED_BYTES:
            await self._read_chunk(must_keep=True)

    def payload(self) -> bytes | AsyncIterator[bytes]:
        """The body to send: bytes when all of a small body is here, chunks as they arrive otherwise."""
        return self._iterate_chunks() if (whole := self.whole()) is None else whole

    def whole(self) -> bytes | None:
        """All of a small body, where it is here; None otherwise."""
        if not self.complete or not self.replayable or self._body.size > MAX_BUFFERED_BYTES:
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

        Raises TooLarge: it outgrows the limit; QueueFull: it outgrows the memory budget for bodies.
        """
        while not self.complete:
            await self._read_chunk()
            if not self.replayable:
                detail = "There is no memory left to hold this body."
                raise QueueFull(detail, hint="Try again in a moment.", retry_after=1)
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
            message = await self._body.read()
            if message["type"] == "http.disconnect":
                gone = self.error = Cancelled("The caller went away while sending.")
                raise gone
        except FoveaError:
            if self.on_failure is not None:
                self.on_failure()
            raise
        chunk: bytes = message.get("body", b"")
        if chunk:
            self._keep(chunk, must_keep)
        return chunk

    def _keep(self, chunk: bytes, must_keep: bool) -> None:
        reserved = self.replayable and self._budget.take(len(chunk), self._tenant)
        self._reserved += len(chunk) * reserved
        if reserved or must_keep:
            self._kept.append(chunk)
        else:
            self.replayable = False
