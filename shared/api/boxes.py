"""Boxes on the wire: pictures in, what was found in them out.

Pixels are those of the upright original, x right and y down, whatever size the network works at.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from shared.api.image import ImageBytes
from shared.api.lists import listed

__all__ = ["Box", "DetectIn", "DetectOut", "DetectTimes", "Detection"]

Box = tuple[float, float, float, float]
"""x1, y1, x2, y2 in pixels."""


class DetectIn(BaseModel):
    """A picture to search, and how."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    image: ImageBytes = Field(description="PNG, JPEG, WebP, TIFF or BMP.")
    model: str | None = Field(None, description="Which model; left out, the default one.")
    confidence: float = Field(0.25, ge=0, le=1, description="Least score of a detection.")
    iou: float = Field(0.45, ge=0, le=1, description="Of two boxes that overlap by more than this, the better stays.")
    max_detections: int = Field(300, ge=1, le=3000, description="Most detections of a picture, best first.")
    classes: Annotated[tuple[str, ...], BeforeValidator(listed)] = Field(
        (), description="Only these classes, by name or id; empty means all."
    )
    agnostic: bool = Field(False, description="Boxes of different classes suppress each other too.")


class Detection(BaseModel):
    """One object that was found."""

    box: Box = Field(description="x1, y1, x2, y2 in pixels of the upright original.")
    score: float
    label: str = Field(description="Name of its class.")
    class_id: int
    track_id: int | None = Field(None, description="The same object in the frames of one stream.")


class DetectTimes(BaseModel):
    """Where the time went, in milliseconds; `infer` is that of the whole micro-batch."""

    decode: float = 0.0
    preprocess: float = 0.0
    infer: float = 0.0
    post: float = 0.0


class DetectOut(BaseModel):
    """What was found in one picture."""

    model: str
    version: str
    engine: str = Field(description="What ran the network: onnx, torch, tensorrt or triton.")
    width: int = Field(description="Pixels of the upright original.")
    height: int
    detections: list[Detection] = Field(description="Best first.")
    counts: dict[str, int] = Field(description="Detections by class.")
    times: DetectTimes
    notes: list[str] = Field(default_factory=list, description="How it was resized, and what was odd about the file.")
