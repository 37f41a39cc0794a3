"""Scanpaths on the wire: a shelf of objects and what is sought in, where a person would look out.

Objects are boxes in a picture (for example the answer of `/v1/detect`, or its boxes), or crops on a grid. An object's
id is its place in that list. Pixels are those of the upright picture.
"""

import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, Field

from fovea.api.boxes import Box, DetectOut
from fovea.api.image import Drawable, ImageBytes


def parse_objects(value: Any) -> Any:
    """Objects as forms send them, JSON in a text, become what JSON bodies have."""
    if isinstance(value, list | tuple) and len(value) == 1 and isinstance(value[0], str):
        value = value[0]
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except ValueError as error:
        raise ValueError(f"objects must be JSON: {error}") from error


Objects = Annotated[DetectOut | Annotated[tuple[Box, ...], Field(max_length=3000)], BeforeValidator(parse_objects)]
"""An answer of `/v1/detect`, or boxes x1, y1, x2, y2."""


class ScanpathIn(BaseModel, extra="forbid", frozen=True):
    """A shelf, and how it is searched: `image` with `objects`, or `crops` with `grid`."""

    image: ImageBytes | None = Field(None, description="Picture of the shelf: PNG, JPEG, WebP, TIFF or BMP.")
    model: str | None = Field(None, description="Which model; left out, the default one.")
    objects: Objects | None = Field(None, description="Objects in the picture: a /v1/detect answer, or boxes.")
    crops: Annotated[tuple[ImageBytes, ...], Field(max_length=500)] = Field(
        (), description="Pictures of the objects, row by row, in place of a picture of the shelf."
    )
    grid: tuple[int, int] | None = Field(None, description="Rows and columns of the crops.")
    target: int = Field(ge=0, le=100_000, description="Id of the object that is sought.")
    mode: Literal["greedy", "sampled"] = Field("greedy", description="The likeliest path, or paths drawn by chance.")
    samples: int = Field(1, ge=1, le=100, description="Paths to draw.")
    seed: int = Field(0, ge=0, lt=2**32, description="Makes drawn paths repeatable.")
    max_fixations: int = Field(20, ge=1, le=100, description="A path is cut after so many.")
    reference: tuple[int, ...] = Field(
        (), max_length=200, description="Ids that a person really fixated, to compare with."
    )


class Fixation(BaseModel):
    """One look at an object."""

    id: int = Field(description="Place of the object in the list that was sent.")
    centre: tuple[float, float] = Field(description="x and y of its middle, pixels.")
    probability: float = Field(description="How much it was expected at this step.")
    label: str | None = Field(None, description="Its class, where objects came from a detector.")


class Conduct(BaseModel):
    """How a path searches; the three shares sum to 1."""

    length: int = Field(description="Fixations.")
    search: float = Field(description="Share of first looks at an object.")
    refixation: float = Field(description="Share of looks that stay on an object.")
    revisit: float = Field(description="Share of looks that come back to one.")


class ScanpathSimilarity(BaseModel):
    """How like the reference a path is; 1 is equal, but for nss."""

    sequence_score: float
    vector: float = Field(description="MultiMatch, as are the next three.")
    direction: float
    length: float
    position: float
    sim: float = Field(description="Mean probability of the object fixated next, given the reference so far.")
    nss: float = Field(description="Mean z-score of that probability among all objects.")


class Scanpath(BaseModel):
    """Where one searcher looks, in order."""

    fixations: list[Fixation]
    found: bool = Field(description="Whether it ends on the target.")
    ended: bool = Field(description="Whether it ended by itself and was not cut.")
    behaviour: Conduct
    likeness: ScanpathSimilarity | None = Field(None, description="Against the reference, where one was sent.")


class ScanpathTimes(BaseModel):
    """Where the time went, in milliseconds."""

    decode: float = 0.0
    infer: float = 0.0
    post: float = 0.0


class ScanpathOut(Drawable):
    """How the shelf is searched."""

    model: str
    version: str
    engine: str = Field(description="Engine that ran the network: onnx, torch, tensorrt or triton.")
    width: int = Field(description="Pixels of the upright picture, or of the page of crops.")
    height: int
    layout: list[list[int | None]] = Field(description="Id of the object in each cell of the shelf, row by row.")
    target: int
    paths: list[Scanpath] = Field(description="One, or as many as were drawn.")
    found_share: float = Field(description="Share of the paths that end on the target.")
    times: ScanpathTimes
    notes: list[str] = Field(default_factory=list, description="How objects became a grid, and what was odd.")
