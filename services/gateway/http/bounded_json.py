"""JSON bodies of the gateway's own routes, refused before they are parsed when they have too many parts.

The parser holds the interpreter until it is done, also in another thread, and takes a second for 20 MB of brackets.
"""

import asyncio
import json
from typing import Any

from fovea.errors import Malformed
from shared.asgi.json_bounds import check_parts

_SMALL_BYTES = 2**16
"""Bodies up to this size are parsed at once."""


def parse_json(data: bytes) -> Any:
    """The value of a JSON text.

    Raises Malformed: it is none, or is nested too deeply; TooLarge: it has too many parts.
    """
    check_parts(data)
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise Malformed("The body is not JSON.") from error


async def parse_json_aside(data: bytes) -> Any:
    """As `parse_json`, in a thread where the text is large."""
    return parse_json(data) if len(data) <= _SMALL_BYTES else await asyncio.to_thread(parse_json, data)
