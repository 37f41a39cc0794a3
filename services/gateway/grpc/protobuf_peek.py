"""Reads one text field of a protobuf message without decoding the rest, which is enough to route it.

Knows the wire format (varints, lengths), not the messages.
"""

from __future__ import annotations

from shared.errors import Malformed

__all__ = ["read_text_field"]

_FIXED = {1: 8, 5: 4}
"""Bytes of the wire types that have a fixed size."""


def read_text_field(message: bytes, number: int) -> str:
    """Read the last value of field `number`, a string; empty where it is absent.

    Every known encoder writes fields in order of their numbers, so the search ends at the first one beyond.

    Raises:
        Malformed: This is not a protobuf message.
    """
    position, found = 0, b""
    while position < len(message):
        tag, position = _read_varint(message, position)
        if tag >> 3 > number and found:
            break
        start, position = _locate_value(message, position, tag & 7)
        if tag >> 3 == number and tag & 7 == 2:
            found = message[start:position]
    try:
        return found.decode()
    except UnicodeDecodeError as error:
        raise Malformed(f"Field {number} of the message is not UTF-8 text.") from error


def _locate_value(message: bytes, position: int, kind: int) -> tuple[int, int]:
    """Find where a field's value starts and ends."""
    if kind == 0:
        start, end = position, _read_varint(message, position)[1]
    elif kind == 2:
        size, start = _read_varint(message, position)
        end = start + size
    elif kind in _FIXED:
        start, end = position, position + _FIXED[kind]
    else:
        raise Malformed(f"The message has a field of the unknown wire type {kind}.")
    if end > len(message):
        raise Malformed("The message ends in the middle of a field.")
    return start, end


def _read_varint(message: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while position < len(message) and shift < 70:
        byte = message[position]
        value |= (byte & 0x7F) << shift
        position += 1
        if byte < 0x80:
            return value, position
        shift += 7
    raise Malformed("The message ends in the middle of a number, or the number has no end.")
