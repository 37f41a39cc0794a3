"""Segmentation on the wire: one picture in, its mask out, in as many forms as were asked for.

Pixels are those of the upright original, x right and y down, whatever size the network works at.
"""

from typing import Literal

from pydantic import BaseModel, Field

from fovea.api.image import ImageBytes, PictureAnswer, PictureIn, Times, Words

Form = Literal["mask", "contours", "rle", "probability", "overlay"]
"""Parts of an answer besides its numbers."""


class SegmentIn(PictureIn):
    """A picture to segment, and how."""

    threshold: float = Field(0.5, ge=0, le=1, description="Probability from which a pixel belongs to the mask.")
    normalise: Literal["none", "minmax"] = Field(
        "none",
        description="`minmax` stretches each picture's probabilities to 0..1 before the threshold, as published "
        "evaluations do: no picture is ever empty then, so use it for comparison only.",
    )
    min_area: int = Field(0, ge=0, description="Components with fewer pixels are dropped.")
    min_peak: float | None = Field(
        None,
        ge=0,
        le=1,
        description="Components in which no pixel is this probable are dropped; left out, as was found best for the "
        "weights.",
    )
    keep_largest: bool = Field(False, description="Keep the largest component only.")
    include: Words[Form] = Field(("mask", "contours"), description="Forms of the answer; all else is always there.")


class Component(BaseModel):
    """One connected part of the mask; pixels that touch at a corner are connected."""

    box: tuple[int, int, int, int] = Field(description="x1, y1, x2, y2; x2 and y2 are just outside.")
    area: int = Field(description="Pixels.")
    centre: tuple[float, float] = Field(description="Mean x and y of its pixels' centres.")
    probability: float = Field(description="Mean over its pixels.")


class Contour(BaseModel):
    """A closed polygon along the edges of pixels; filling all contours even-odd gives the mask exactly."""

    points: list[tuple[int, int]] = Field(description="Corners x, y in 0..width and 0..height.")
    hole: bool = Field(description="Whether its inside is not part of the mask.")


class RunLengths(BaseModel):
    """COCO's run-length encoding, as `pycocotools.mask.decode` reads it."""

    size: tuple[int, int] = Field(description="Height, width.")
    counts: str = Field(description="Compressed runs, column by column.")


class SegmentOut(PictureAnswer):
    """Findings in one picture."""

    empty: bool = Field(description="Whether no pixel is in the mask.")
    area: int = Field(description="Pixels in the mask.")
    area_percent: float = Field(description="Of the picture.")
    max_probability: float = Field(description="Over the whole picture.")
    mean_probability: float = Field(description="Over the mask; 0 when it is empty.")
    components: list[Component] = Field(description="Largest first; at most 100.")
    component_count: int = Field(description="All of them.")
    mask: ImageBytes | None = Field(None, description="PNG of the original's size, 0 or 255.")
    contours: list[Contour] | None = Field(None, description="Of the components listed.")
    rle: RunLengths | None = None
    probability: ImageBytes | None = Field(None, description="Confidence map: PNG of the original's size, 0..255.")
    overlay: ImageBytes | None = Field(None, description="JPEG of the original with the mask drawn on it.")
    times: Times
    warnings: list[str] = Field(default_factory=list, description="Why the mask should not be believed, if so.")
