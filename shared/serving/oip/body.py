"""HTTP bodies of Open Inference v2: read with their tensors aligned; written in parts, compressed on request."""

import asyncio
import gzip
import zlib
from collections.abc import Sequence
from typing import Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from shared.asgi.body import WINDOW_BITS
from shared.rpc.oip_json import HEADER_LENGTH, EncodedBody, align

_LEVEL: Final = 1  # tensors are nearly incompressible: more effort only costs time
_JOIN_BELOW_BYTES: Final = 64 * 1024  # below this, one write costs less than two


async def read_body(request: Request, header_length: int | None) -> memoryview:
    """The request's body, laid out so that its first binary tensor is aligned."""
    return align([chunk async for chunk in request.stream()], header_length)


async def build_response(request: Request, body: EncodedBody) -> Response:
    """Build a response, compressed where the caller names exactly one known coding."""
    headers = {} if body.header_length is None else {HEADER_LENGTH: str(body.header_length)}
    media_type = "application/json" if body.header_length is None else "application/octet-stream"
    coding = request.headers.get("accept-encoding", "").strip().lower()
    # Browsers and HTTP libraries list several codings by default; a tensor client that wants one names that one.
    if coding in WINDOW_BITS:
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
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        for left, part in enumerate(self.parts, 1 - len(self.parts)):
            await send({"type": "http.response.body", "body": part, "more_body": left < 0})


def _deflate(body: EncodedBody, coding: str) -> bytes:
    data = body.join()
    return gzip.compress(data, _LEVEL, mtime=0) if coding == "gzip" else zlib.compress(data, _LEVEL)
