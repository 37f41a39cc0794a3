"""Boxes on the wire: pictures in, what was found in them out.

Pixels are those of the upright original, x right and y down, whatever size the network works at.
"""

from typing import Literal

from pydantic import BaseModel, Field

from fovea.api.image import ImageBytes, PictureAnswer, Times, Words

DEFAULT_CONFIDENCE = 0.25
"""Least score of a detection where neither the request nor the weights say another."""

Box = tuple[float, float, float, float]
"""x1, y1, x2, y2 in pixels."""

Extra = Literal["columns", "crops", "letterbox", "overlay"]
"""Parts of an answer besides its detections."""


class DetectOptions(BaseModel, extra="forbid", frozen=True):
    """How to search a picture, or the frames of a stream."""

    model: str | None = Field(None, description="Which model; left out, the default one.")
    confidence: float | None = Field(
        None,
        ge=0,
        le=1,
        description="A detection scores more than this; left out, the score at which the weights count best, or 0.25.",
    )
    iou: float = Field(0.45, ge=0, le=1, description="Of two boxes that overlap by more than this, the better stays.")
    max_detections: int = Field(300, ge=1, le=3000, description="Most detections of a picture, best first.")
    classes: Words[str] = Field((), description="Only these classes, by name or id; empty means all.")
    agnostic: bool = Field(False, description="Boxes of different classes suppress each other too.")
    size: int | None = Field(
        None,
        ge=32,
        le=1536,
        multiple_of=32,
        description="Longest side that the network sees; left out, the model's own.",
    )
    tile: int | None = Field(
        None,
        ge=64,
        le=4096,
        description="Search slices of this side (pixels of the original) next to the whole: finds what is small in a "
        "large picture.",
    )
    tile_overlap: float = Field(0.2, ge=0, le=0.5, description="Share of a slice that its neighbour sees too.")
    microns_per_pixel: float | None = Field(
        None, gt=0, le=1e6, allow_inf_nan=False, description="Scale of the original; adds sizes in µm."
    )


class DetectIn(DetectOptions):
    """A picture to search, and how."""

    image: ImageBytes = Field(description="PNG, JPEG, WebP, TIFF or BMP.")
    include: Words[Extra] = Field((), description="`columns` replaces the list of detections where there are many.")
    labels: bool = Field(True, description="Whether a drawn picture names its boxes.")
    stroke: int | None = Field(None, ge=1, le=64, description="Width of drawn lines; left out, it follows the picture.")


class Micrometres(BaseModel):
    """Sizes in the world, in µm and µm²."""

    width: float
    height: float
    radius: float = Field(description="A quarter of width and height together.")
    area: float = Field(description="Of the box.")


class Detection(BaseModel):
    """One object that was found."""

    box: Box = Field(description="x1, y1, x2, y2 in pixels of the upright original.")
    score: float
    label: str = Field(description="Name of its class.")
    class_id: int
    area: float = Field(description="Area of the box, in pixels.")
    radius: float = Field(description="A quarter of width and height together, in pixels.")
    microns: Micrometres | None = Field(None, description="Where microns_per_pixel is given.")
    track_id: int | None = Field(None, description="The same object in the frames of one stream.")


class BoxColumns(BaseModel):
    """The detections as columns, row by row the same as a list of them would be."""

    xyxy: list[Box]
    confidence: list[float]
    class_id: list[int]
    class_names: dict[int, str]


class Crop(BaseModel):
    """A detection cut out of the original."""

    index: int = Field(description="Of the detection.")
    image: ImageBytes = Field(description="PNG.")


class Letterbox(BaseModel):
    """How the whole picture was fitted into the network's input."""

    ratio: float = Field(description="Pixels of the input per pixel of the original.")
    pad: tuple[float, float] = Field(description="Half of the padding along x and y.")
    width: int = Field(description="Of the input.")
    height: int


class Tally(BaseModel):
    """The detections of one class together."""

    count: int
    percent: float = Field(description="Of all detections.")
    mean_score: float
    mean_radius: float = Field(description="Pixels.")
    mean_radius_um: float | None = Field(None, description="Where microns_per_pixel is given.")


class DetectOut(PictureAnswer):
    """Findings in one picture."""

    detections: list[Detection] = Field(description="Best first; empty where columns were asked for.")
    counts: dict[str, int] = Field(description="Detections by class.")
    summary: dict[str, Tally] = Field(default_factory=dict, description="Numbers by class.")
    columns: BoxColumns | None = None
    crops: list[Crop] | None = None
    letterbox: Letterbox | None = None
    overlay: ImageBytes | None = Field(None, description="JPEG of the original with the boxes drawn on it.")
    slices: int = Field(0, description="Slices that were searched next to the whole picture.")
    times: Times
    warnings: list[str] = Field(default_factory=list, description="Why the boxes should not be believed, if so.")


class DetectedFrame(BaseModel):
    """One frame of a stream: what was found in it, or what was wrong with it."""

    frame: int = Field(description="Number of the frame as it arrived, from 0.")
    dropped: int = Field(0, description="Frames left out just before this one because newer ones had arrived.")
    dropped_total: int = 0
    width: int | None = None
    height: int | None = None
    detections: list[Detection] = Field(default_factory=list)
    counts: dict[str, int] = Field(default_factory=dict)
    times: Times | None = None
    problem: dict[str, object] | None = Field(None, description="Why this frame has no answer; the stream goes on.")
