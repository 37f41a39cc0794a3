"""Reads one text field of a protobuf message without decoding the rest, which is enough to route it."""

from __future__ import annotations

from fovea.errors import Malformed
from shared.rpc.protobuf_fields import iterate_fields

MAX_TEXT_BYTES = 1024
"""Bytes that a name may have."""


def read_text_field(message: bytes, number: int) -> str:
    """Read the last value of field `number`, a string; empty where it is absent.

    Every known encoder writes fields in order of their numbers, so the search ends at the first one beyond. Raises
    Malformed: this is not a protobuf message, or has too many fields.
    """
    found = b""
    for field in iterate_fields(message):
        if field.number > number and found:
            break
        if field.number == number and field.kind == 2:
            if field.end - field.start > MAX_TEXT_BYTES:
                raise Malformed(f"Field {number} of the message is longer than any name.")
            found = message[field.start : field.end]
    try:
        return found.decode()
    except UnicodeDecodeError as error:
        raise Malformed(f"Field {number} of the message is not UTF-8 text.") from error
