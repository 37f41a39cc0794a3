"""Matrices on the wire: `.npy` or `.npz` bytes in multipart and raw bodies, base64 or rows of numbers in JSON.

Says nothing about what is inside: whoever reads the bytes checks their header before their content.
"""

import base64
from typing import Annotated, Any

from pydantic import BeforeValidator, FiniteFloat, PlainSerializer, WithJsonSchema
from pydantic_core import PydanticCustomError

from fovea.api.image import decode_base64

Rows = tuple[tuple[FiniteFloat, ...], ...]
"""A matrix as JSON has it."""


def _given(value: Any) -> Any:
    """Bytes from base64; forms send one file or one text as a list of one."""
    if isinstance(value, list | tuple) and len(value) == 1 and isinstance(value[0], bytes | str):
        value = value[0]
    if not isinstance(value, str):
        return value
    try:
        return decode_base64(value)
    except ValueError as error:
        kind, template = "base64", "the array is {problem}"
        raise PydanticCustomError(kind, template, {"problem": str(error)}) from error


ArrayBytes = Annotated[
    bytes | Rows,
    BeforeValidator(_given),
    PlainSerializer(lambda v: base64.b64encode(v).decode("ascii") if isinstance(v, bytes) else v, when_used="json"),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string", "contentEncoding": "base64", "contentMediaType": "application/octet-stream"},
                {"type": "array", "items": {"type": "array", "items": {"type": "number"}}},
            ]
        }
    ),
]
"""A matrix: `.npy` or `.npz` bytes in Python or rows of numbers; in JSON base64 or rows."""
