"""Reads top-level fields of a JSON object without parsing the rest.

For large bodies: a JSON parser holds the interpreter until it is done, and a hostile body of 60 MB takes it seconds.
This goes token by token, so that other threads run in between, and gives up after a bounded number of tokens.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

from shared.errors import Malformed

__all__ = ["MAX_TOKENS", "TooManyTokens", "iterate_fields", "read_json_field"]

MAX_TOKENS = 1_000_000
"""Strings and brackets that are looked at; a request of pictures in base64 has a few dozen."""

MAX_TEXT_BYTES = 1024
"""Bytes that the value may have."""

_TOKEN = re.compile(rb'"(?:[^"\\]|\\.)*+"|[{}\[\]:]')
_STRING = re.compile(rb'[ \t\r\n]*("(?:[^"\\]|\\.)*+")')
_OPENING, _CLOSING = frozenset(b"{["), frozenset(b"}]")


class TooManyTokens(Exception):
    """The body has more tokens than are looked at."""


def iterate_fields(body: bytes, max_tokens: int) -> Iterator[tuple[bytes, int]]:
    """The top-level fields of an object, in order: the name as it is quoted, and the offset of its value.

    Raises:
        TooManyTokens: The body goes on after `max_tokens` tokens.
    """
    depth, last = 0, b""
    for count, found in enumerate(_TOKEN.finditer(body)):
        if count == max_tokens:
            raise TooManyTokens
        token = found[0]
        if depth == 1 and token == b":":
            yield last, found.end()
        depth += (token[0] in _OPENING) - (token[0] in _CLOSING)
        last = token


def read_json_field(body: bytes, name: str) -> str | None:
    """The value of a top-level field, if it is a string; None where there is none.

    Raises:
        Malformed: It was not found among the first `MAX_TOKENS` tokens, or is longer than any name.
    """
    wanted = json.dumps(name).encode()
    try:
        for quoted, offset in iterate_fields(body, MAX_TOKENS):
            if quoted == wanted and (value := _STRING.match(body, offset)):
                return _decode(value[1], name)
    except TooManyTokens as error:
        detail = f"The body has too many parts to look for {name!r} in."
        raise Malformed(detail, hint=f"Put {name!r} first, or into the query.", field=name) from error
    return None


def _decode(token: bytes, name: str) -> str | None:
    if len(token) > MAX_TEXT_BYTES:
        raise Malformed(f"{name!r} is longer than any name.", field=name)
    try:
        text: object = json.loads(token)
    except ValueError:
        return None
    return text if isinstance(text, str) else None
