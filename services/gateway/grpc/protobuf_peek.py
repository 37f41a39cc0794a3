"""Reads one text field of a protobuf message without decoding the rest: enough to route it, whatever its size.

Knows the wire format (varints, lengths), not the messages.
"""

from __future__ import annotations

from shared.errors import Malformed

__all__ = ["read_text_field"]

_FIXED = {1: 8, 5: 4}
"""Bytes of the wire types that have a fixed size."""


def read_text_field(message: bytes, number: int) -> str:
    """The last value of field `number`, a string; empty where it is absent.

    Fields are written in order of their numbers by every encoder we know, so the search ends at the first field beyond.

    Raises:
        Malformed: This is no protobuf message.
    """
    place, found = 0, b""
    while place < len(message):
        tag, place = _varint(message, place)
        if tag >> 3 > number and found:
            break
        start, place = _value(message, place, tag & 7)
        if tag >> 3 == number and tag & 7 == 2:
            found = message[start:place]
    try:
        return found.decode()
    except UnicodeDecodeError as error:
        raise Malformed(f"Field {number} of the message is not UTF-8 text.") from error


def _value(message: bytes, place: int, kind: int) -> tuple[int, int]:
    """Where a field's value starts and ends."""
    if kind == 0:
        start, end = place, _varint(message, place)[1]
    elif kind == 2:
        size, start = _varint(message, place)
        end = start + size
    elif kind in _FIXED:
        start, end = place, place + _FIXED[kind]
    else:
        raise Malformed(f"The message has a field of the unknown wire type {kind}.")
    if end > len(message):
        raise Malformed("The message ends in the middle of a field.")
    return start, end


def _varint(message: bytes, place: int) -> tuple[int, int]:
    value = shift = 0
    while place < len(message) and shift < 70:
        byte = message[place]
        value |= (byte & 0x7F) << shift
        place += 1
        if byte < 0x80:
            return value, place
        shift += 7
    raise Malformed("The message ends in the middle of a number, or the number has no end.")
