"""Bounds of JSON bodies: how many parts one may have, counted while it arrives, before a parser or a model sees it.

Parsing and validating takes time and memory by part: an empty list of three bytes becomes an object and, where it is
wrong, an error of a hundred bytes. Text costs nothing, so what is inside of quotes does not count.
"""

import re
from typing import Final

from fovea.errors import TooLarge

MAX_PARTS: Final = 250_000
"""Commas and opening brackets of a body: a parser takes 0.1 s for them, and a model that refuses each 0.1 s more."""

_STRING: Final = re.compile(rb'"(?:[^"\\]++|\\.)*+"', re.DOTALL)
_PARTS: Final = (b",", b"[", b"{")
_SLICE_BYTES: Final = 2**18


class PartsCounter:
    """Counts the parts of one body, if it is JSON."""

    def __init__(self, path: str, content_type: str) -> None:
        """Count those of a body that comes to a path under a content type, which may be empty."""
        media = content_type.partition(";")[0].strip().lower()
        self.count = 0
        # Open Inference bounds its own bodies. Without a type the first byte tells.
        self._is_json: bool | None = False if path.startswith("/v2") else (None if not media else "json" in media)
        self._open = b""

    def feed(self, chunk: bytes) -> None:
        """Take the next bytes. Raises TooLarge: the body has more parts than the limit."""
        if self._is_json is None and (text := chunk.lstrip()):
            self._is_json = text[:1] in {b"{", b"["}
        if not self._is_json:
            return
        for start in range(0, len(chunk), _SLICE_BYTES):
            self._count(chunk[start : start + _SLICE_BYTES])

    def _count(self, piece: bytes) -> None:
        piece = self._open + piece
        held = (len(piece) - len(piece.rstrip(b"\\"))) % 2  # an escape whose letter has not arrived yet
        body, escape = piece[: len(piece) - held], piece[len(piece) - held :]
        # A quote at the end closes the text that is open there, or stays behind where none is.
        outside = _STRING.sub(b"", body + b'"')
        self.count += sum(outside.count(part) for part in _PARTS)
        self._open = escape if outside.endswith(b'"') else b'"' + escape
        if self.count > MAX_PARTS:
            detail = f"The body has more than {MAX_PARTS:,} parts (list items and fields)."
            raise TooLarge(detail, hint="Send less at a time; tensors go as binary data.")


def check_parts(data: bytes) -> None:
    """Check a whole JSON text. Raises TooLarge: it has more parts than the limit."""
    if len(data) > MAX_PARTS:
        PartsCounter("", "application/json").feed(data)
