"""Walks the top-level fields of a protobuf message without decoding it, in time bounded by the number of fields.

Knows the wire format (varints, lengths), not the messages. Values are stepped over by their lengths, so a hostile
message costs what its first few thousand fields cost, whatever its size.
"""

from collections.abc import Iterator
from typing import NamedTuple

from fovea.errors import Malformed

MAX_FIELDS = 4096
"""Top-level fields that a message may have: no request of Open Inference has more than its tensors and a handful."""

_FIXED = {1: 8, 5: 4}  # bytes of the wire types that have a fixed size
_MAX_FIELD_NUMBER = 2**29 - 1


class WireField(NamedTuple):
    """Number and wire type of a field, and where its value starts and ends."""

    number: int
    kind: int
    start: int
    end: int


def iterate_fields(message: bytes) -> Iterator[WireField]:
    """The top-level fields of a message, in its order; `Malformed` if it is none, or has more than `MAX_FIELDS`."""
    position, left = 0, MAX_FIELDS
    while position < len(message):
        if not left:
            raise Malformed(f"The message has more than {MAX_FIELDS:,} fields.")
        left -= 1
        tag, position = _read_varint(message, position)
        number = tag >> 3
        if not 1 <= number <= _MAX_FIELD_NUMBER:
            raise Malformed(f"The message has a field of the number {number}, which does not exist.")
        start, position = _locate_value(message, position, tag & 7)
        yield WireField(number, tag & 7, start, position)


def _locate_value(message: bytes, position: int, kind: int) -> tuple[int, int]:
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
