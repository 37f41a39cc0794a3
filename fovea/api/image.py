"""Pictures on the wire: bytes in multipart and raw bodies, base64 (with or without a data-URI prefix) in JSON."""

from __future__ import annotations

import base64
import binascii
from typing import Annotated, Any

from pydantic import BeforeValidator, PlainSerializer, WithJsonSchema
from pydantic_core import PydanticCustomError

IMAGE_TYPES = ("image/png", "image/jpeg", "image/webp", "image/tiff", "image/bmp")
"""Formats that `shared.vision.decode` reads."""


def decode_base64(text: str) -> bytes:
    """Bytes of a base64 string; a `data:…;base64,` prefix (browsers send it) and white space are ignored.

    Raises ValueError: the text is not base64.
    """
    if text.startswith("data:"):
        text = text.partition(",")[2]
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        message = f"not base64: {error}"
        raise ValueError(message) from error


def _to_bytes(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return decode_base64(value)
    except ValueError as error:
        kind, template = "base64", "the picture is {problem}"
        raise PydanticCustomError(kind, template, {"problem": str(error)}) from error


ImageBytes = Annotated[
    bytes,
    BeforeValidator(_to_bytes),
    PlainSerializer(lambda raw: base64.b64encode(raw).decode("ascii"), return_type=str, when_used="json"),
    WithJsonSchema({"type": "string", "contentEncoding": "base64", "contentMediaType": "image/*"}),
]
"""An encoded picture: `bytes` in Python, base64 in JSON. Fronts find such fields by `contentMediaType`."""
