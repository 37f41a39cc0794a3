"""HTTP bodies of Open Inference v2: read raw and bounded, inflated where compressed; written, compressed on request."""

from __future__ import annotations

import asyncio
import gzip
import zlib
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from fovea.errors import Malformed, TooLarge, UnsupportedMedia
from shared.rpc.oip_json import HEADER_LENGTH, EncodedBody, align

_WBITS: Final[Mapping[str, int]] = MappingProxyType({"gzip": 31, "deflate": 15})
_LEVEL: Final = 1  # tensors are nearly incompressible: more effort only costs time
_JOIN_BELOW_BYTES: Final = 64 * 1024  # below this, one write costs less than two


async def read_body(request: Request, header_length: int | None, limit: int) -> memoryview:
    """The request's body, inflated, laid out so that its first binary tensor is aligned.

    Raises:
        TooLarge: It has more than `limit` bytes, as sent or inflated.
        Malformed: It is not what its content encoding says.
        UnsupportedMedia: The content encoding is neither gzip nor deflate.
    """
    chunks, size = [], 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > limit:
            raise _too_large(limit)
        chunks.append(chunk)
    coding = request.headers.get("content-encoding", "identity").strip().lower()
    if coding not in {"identity", ""}:
        chunks = [await asyncio.to_thread(_inflate, b"".join(chunks), coding, limit)]
    return align(chunks, header_length)


async def build_response(request: Request, body: EncodedBody) -> Response:
    """Build a response, compressed where the caller names exactly one known coding."""
    headers = {} if body.header_length is None else {HEADER_LENGTH: str(body.header_length)}
    media_type = "application/json" if body.header_length is None else "application/octet-stream"
    coding = request.headers.get("accept-encoding", "").strip().lower()
    # Browsers and HTTP libraries list several codings by default; a tensor client that wants one names that one.
    if coding in _WBITS:
        content = await asyncio.to_thread(_deflate, body, coding)
        headers |= {"content-encoding": coding, "vary": "accept-encoding"}
        return Response(content, headers=headers, media_type=media_type)
    if sum(map(len, body.parts)) > _JOIN_BELOW_BYTES:
        return _PartsResponse(body.parts, headers, media_type)
    return Response(body.join(), headers=headers, media_type=media_type)


class _PartsResponse(Response):
    """A response that is sent part by part: joining megabytes costs more than everything else about an answer."""

    def __init__(self, parts: Sequence[bytes | memoryview], headers: dict[str, str], media_type: str) -> None:
        self.parts = parts
        length = str(sum(map(len, parts)))
        super().__init__(headers={**headers, "content-length": length}, media_type=media_type)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it."""
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        for left, part in enumerate(self.parts, 1 - len(self.parts)):
            await send({"type": "http.response.body", "body": part, "more_body": left < 0})


def _inflate(data: bytes, coding: str, limit: int) -> bytes:
    if coding not in _WBITS:
        raise UnsupportedMedia(f"The content encoding {coding[:40]!r} is unknown.", hint="Known are gzip and deflate.")
    inflater = zlib.decompressobj(_WBITS[coding])
    try:
        inflated = inflater.decompress(data, limit + 1)
    except zlib.error as error:
        raise Malformed(f"The body is not {coding}: {error}.") from error
    if len(inflated) > limit:
        raise _too_large(limit)
    if not inflater.eof or inflater.unused_data:
        raise Malformed(f"The body is not one whole {coding} stream.")
    return inflated


def _deflate(body: EncodedBody, coding: str) -> bytes:
    data = body.join()
    return gzip.compress(data, _LEVEL, mtime=0) if coding == "gzip" else zlib.compress(data, _LEVEL)


def _too_large(limit: int) -> TooLarge:
    return TooLarge(f"The body has more than {limit:,} bytes.", hint="Send less at a time.")
