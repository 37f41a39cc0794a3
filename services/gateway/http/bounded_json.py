"""JSON bodies of the gateway's own routes, refused before they are parsed when they have too many parts.

The parser holds the interpreter until it is done, also in another thread, and takes a second for 20 MB of brackets.
Long strings, such as pictures in base64, cost it nothing.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

from fovea.errors import Malformed

MAX_PARTS = 200_000
"""Commas and opening brackets, which take the parser up to 50 ms."""

_PARTS = (b",", b"[", b"{")
_SLICE_BYTES = 2**18
"""Bytes that are counted at a time: other threads run in between."""

_SMALL_BYTES = 2**16
"""Bodies up to this size are parsed at once."""


def parse_json(data: bytes) -> Any:
    """The value of a JSON text.

    Raises:
        Malformed: It is none, is nested too deeply, or has more than `MAX_PARTS` parts.
    """
    if len(data) > _SMALL_BYTES:
        _check_parts(data)
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise Malformed("The body is not JSON.") from error


async def parse_json_aside(data: bytes) -> Any:
    """As `parse_json`, in a thread where the text is large."""
    return parse_json(data) if len(data) <= _SMALL_BYTES else await asyncio.to_thread(parse_json, data)


def _check_parts(data: bytes) -> None:
    count, view = 0, memoryview(data)
    for start in range(0, len(data), _SLICE_BYTES):
        piece = bytes(view[start : start + _SLICE_BYTES])
        count += sum(piece.count(part) for part in _PARTS)
        if count > MAX_PARTS:
            detail = f"The body has more than {MAX_PARTS:,} parts."
            raise Malformed(detail, hint="Send less at a time; tensors go as binary data.")
