"""Reads top-level fields of a JSON object without parsing the rest.

For large bodies: a JSON parser holds the interpreter until it is done, and a hostile body of 60 MB takes it seconds.
This goes token by token, so that other threads run in between, and gives up after a bounded number of tokens.
"""

import json
import re
from collections.abc import Collection, Iterator
from contextlib import suppress

from fovea.errors import Malformed

MAX_TOKENS = 1_000_000
"""Strings and brackets that are looked at; a request of pictures in base64 has a few dozen."""

MAX_TEXT_BYTES = 1024
"""Bytes that the value may have."""

_TOKEN = re.compile(rb'"(?:[^"\\]|\\.)*+"|[{}\[\]:]')
_STRING = re.compile(rb'[ \t\r\n]*("(?:[^"\\]|\\.)*+")')
_NOTHING = re.compile(rb"[ \t\r\n]*(?:null|false)\b")
_OPENING, _CLOSING = frozenset(b"{["), frozenset(b"}]")


class TooManyTokens(Exception):
    """The body has more tokens than are looked at."""


def iterate_fields(body: bytes, max_tokens: int) -> Iterator[tuple[bytes, int]]:
    """The top-level fields of an object, in order: the name as it is quoted, and the offset of its value.

    Raises TooManyTokens: the body goes on after `max_tokens` tokens.
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

    Raises Malformed: it was not found among the first `MAX_TOKENS` tokens, or is longer than any name.
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


def has_json_field(body: bytes, names: Collection[str], max_tokens: int = MAX_TOKENS) -> bool:
    """Whether a top-level field of one of these names says more than null or false, or can't be ruled out to.

    Names count however they are escaped. A body that is not an object has no fields.
    """
    try:
        for quoted, offset in iterate_fields(body, max_tokens):
            if _read_name(quoted) in names and _NOTHING.match(body, offset) is None:
                return True
    except TooManyTokens:
        return True
    return False


def _read_name(quoted: bytes) -> str:
    if b"\\" not in quoted:
        return quoted[1:-1].decode("utf-8", "replace")
    with suppress(ValueError):
        return str(json.loads(quoted, strict=False))
    return ""


def _decode(token: bytes, name: str) -> str | None:
    if len(token) > MAX_TEXT_BYTES:
        raise Malformed(f"{name!r} is longer than any name.", field=name)
    try:
        text: object = json.loads(token)
    except ValueError:
        return None
    return text if isinstance(text, str) else None
