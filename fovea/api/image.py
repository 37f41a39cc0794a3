"""Pictures on the wire, and what answers about them share.

Pictures are bytes in multipart and raw bodies, base64 (with or without a data-URI prefix) in JSON.
"""

import base64
import binascii
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, BeforeValidator, Field, PlainSerializer, PrivateAttr, WithJsonSchema
from pydantic_core import PydanticCustomError


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


def split_commas(value: Any) -> Any:
    """Words of one text or of several, split at commas, as forms and query strings write lists: `mask,rle`.

    Whole numbers, such as ids of classes, are words, too. Anything else is left to the field's own check.
    """
    parts = [value] if isinstance(value, str | int) else value
    if not isinstance(parts, list | tuple) or any(isinstance(x, bool) or not isinstance(x, str | int) for x in parts):
        return value
    return [word.strip() for part in parts for word in str(part).split(",") if word.strip()]


Item = TypeVar("Item")
Words = Annotated[tuple[Item, ...], BeforeValidator(split_commas)]
"""A list that may be given as words with commas between."""


class PictureIn(BaseModel, extra="forbid", frozen=True):
    """A picture, and the model that it is for."""

    image: ImageBytes = Field(description="PNG, JPEG, WebP, TIFF or BMP.")
    model: str | None = Field(None, description="Which model; left out, the default one.")


class Times(BaseModel):
    """Milliseconds per stage of a picture; `infer` is that of the whole micro-batch."""

    decode: float = 0.0
    preprocess: float = 0.0
    infer: float = 0.0
    post: float = 0.0


class Drawable(BaseModel):
    """An answer of a vision model. The pixels that it is drawn from stay in the process."""

    _scene: Any = PrivateAttr(default=None)

    @property
    def scene(self) -> Any:
        """Source of the drawing, where a form other than JSON was asked for; else None."""
        return self._scene

    def attach(self, scene: object) -> None:
        """Carry what the answer is drawn from, so that a picture of it needs no second run."""
        self._scene = scene


class PictureAnswer(Drawable):
    """Findings in one picture."""

    model: str
    version: str
    engine: str = Field(description="Engine that ran the network: onnx, torch, tensorrt or triton.")
    width: int = Field(description="Pixels of the upright original.")
    height: int
    notes: list[str] = Field(default_factory=list, description="How it was resized, and what was odd about the file.")
