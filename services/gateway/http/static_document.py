"""Static document: bytes for many callers, kept ready, compressed, with an ETag. Knows nothing about their meaning."""

from __future__ import annotations

import gzip
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from starlette.responses import Response

_LEVEL = 6


@dataclass(frozen=True, slots=True)
class StaticDocument:
    """A document as it goes over the wire."""

    content: bytes
    compressed: bytes
    etag: str
    media_type: str

    @classmethod
    def build(cls, content: bytes, media_type: str) -> Self:
        """Compress a document and name it by its hash."""
        etag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
        return cls(content, gzip.compress(content, _LEVEL, mtime=0), etag, media_type)

    def respond(self, headers: Mapping[str, str]) -> Response:
        """Answer a request with these headers: 304 where the caller has it, compressed where it takes that."""
        shared = {"etag": self.etag, "vary": "accept-encoding", "cache-control": "no-cache"}
        if self.etag in {tag.strip().removeprefix("W/") for tag in headers.get("if-none-match", "").split(",")}:
            return Response(status_code=304, headers=shared)
        if _takes_gzip(headers.get("accept-encoding", "")):
            return Response(self.compressed, headers={**shared, "content-encoding": "gzip"}, media_type=self.media_type)
        return Response(self.content, headers=shared, media_type=self.media_type)


def _takes_gzip(accepted: str) -> bool:
    for each in accepted.split(","):
        name, _, weight = each.replace(" ", "").lower().partition(";q=")
        if name == "gzip":
            return weight not in {"0", "0.0", "0.00", "0.000"}
    return False
