"""Body of a request as it arrives: bounded in size and in the pause between two chunks, and inflated where asked."""

import asyncio
import zlib
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any

from fovea.errors import BadInput, FoveaError, Malformed, TooLarge, UnsupportedMedia

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]

WINDOW_BITS = {"gzip": 31, "deflate": 15}
"""Content codings that are read and written, with zlib's number of each."""


class SlowBody(BadInput):
    """The caller paused for too long while sending its body."""

    status, grpc, title = 408, "DEADLINE_EXCEEDED", "Request timeout"


def build_too_large(size: int, limit: int) -> TooLarge:
    """Build the error for a body of at least `size` bytes."""
    detail = f"The body has {size:,} bytes or more; the limit is {limit:,}."
    return TooLarge(detail, hint="Send a smaller body, or raise FOVEA_MAX_BODY_BYTES.")


def read_content_length(headers: Mapping[bytes, bytes], limit: int) -> int | None:
    """Read the declared length of a body: None when it comes in chunks, 0 when there is none.

    Raises TooLarge: it declares more than `limit` bytes; Malformed: the length is not a number.
    """
    text = headers.get(b"content-length")
    if text is None:
        return None if b"transfer-encoding" in headers else 0
    if not text.isdigit():
        raise Malformed(f"The Content-Length {text[:40].decode('latin-1')!r} is not a number.")
    if int(text) > limit:
        raise build_too_large(int(text), limit)
    return int(text)


def read_coding(headers: Mapping[bytes, bytes]) -> str:
    """Read the content coding of a body; empty where it is not compressed."""
    coding = headers.get(b"content-encoding", b"").strip().lower()
    return "" if coding == b"identity" else coding.decode("latin-1")


class Inflater:
    """Inflates a compressed body, chunk by chunk, without ever holding more than is allowed."""

    def __init__(self, coding: str) -> None:
        """Begin a body. Raises UnsupportedMedia: the coding is unknown."""
        if coding not in WINDOW_BITS:
            detail = f"The content encoding {coding[:40]!r} is not read here."
            raise UnsupportedMedia(detail, hint="Known are gzip and deflate.")
        self._coding = coding
        self._inflater = zlib.decompressobj(WINDOW_BITS[coding])

    def check_whole(self) -> None:
        """Check, at the end of a body, that it was one whole stream; `Malformed` if it was not."""
        if not self._inflater.eof or self._inflater.unused_data:
            raise Malformed(f"The body is not one whole {self._coding} stream.")

    async def inflate(self, chunk: bytes, limit: int) -> bytes:
        """The next part of the body, of at most `limit` bytes. Raises Malformed: it is broken."""
        try:
            return await asyncio.to_thread(self._inflater.decompress, chunk, limit)
        except zlib.error as error:
            raise Malformed(f"The body is not {self._coding}: {error}.") from error


class BoundedBody:
    """The body of one request.

    Attributes:
        size: Bytes that have arrived, inflated.
        complete: Whether all of it is here.
        error: Why reading failed; whoever reads on gets it again.
        limit: Most bytes.
        inflater: Inflates what arrives; None where it is not compressed.
    """

    def __init__(self, receive: Receive, *, limit: int, pause_s: float) -> None:
        """Read from `receive`; `pause_s` is the longest wait for the next chunk."""
        self._receive, self._pause_s = receive, pause_s
        self.limit = limit
        self.size = 0
        self.complete = False
        self.error: FoveaError | None = None
        self.inflater: Inflater | None = None

    async def read(self) -> Message:
        """The next message: a chunk, or the disconnect.

        Raises SlowBody: none arrived for too long; TooLarge: the body outgrows its limit; Malformed: it can't be
        inflated.
        """
        if self.error is not None:
            raise self.error
        try:
            return await self._read()
        except FoveaError as error:
            self.error = error
            raise

    async def _read(self) -> Message:
        try:
            async with asyncio.timeout(self._pause_s):
                message = await self._receive()
        except TimeoutError as error:
            detail = f"No byte of the body arrived for {self._pause_s:g} s."
            raise SlowBody(detail, hint="Send the body without pauses.") from error
        chunk = message.get("body", b"")
        if self.inflater is not None and chunk:
            chunk = await self.inflater.inflate(chunk, max(self.limit - self.size, 0) + 1)
            message = {**message, "body": chunk}
        self.size += len(chunk)
        if self.size > self.limit:
            raise build_too_large(self.size, self.limit)
        self.complete = message["type"] == "http.request" and not message.get("more_body", False)
        if self.complete and self.inflater is not None and self.size:
            self.inflater.check_whole()
        return message
