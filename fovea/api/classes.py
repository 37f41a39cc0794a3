"""Classification on the wire: a picture in, the class of the whole or of each patch of a grid out.

Pixels are those of the upright original, x right and y down, whatever size the network works at.
"""

from pydantic import BaseModel, Field

from fovea.api.image import PictureAnswer, PictureIn, Times


class ClassifyIn(PictureIn):
    """A picture to classify, and how."""

    top_k: int = Field(3, ge=1, le=100, description="Most likely classes to list, best first.")
    tile: int | None = Field(
        None,
        ge=16,
        le=8192,
        description="Side of a patch, pixels: the picture is divided evenly into patches of about this size, and each "
        "is classified alone. Left out, the picture is classified whole.",
    )


class Candidate(BaseModel):
    """A class and how likely it is."""

    label: str = Field(description="Name of the class.")
    class_id: int
    probability: float


class Classified(Candidate):
    """Class of a patch, or of the whole picture."""

    box: tuple[int, int, int, int] = Field(description="x1, y1, x2, y2 of the patch; x2 and y2 are just outside.")
    top: list[Candidate] = Field(description="The most likely classes, best first; the first is the answer.")


class ClassifyOut(PictureAnswer):
    """Classes of a picture, patch by patch."""

    rows: int = Field(description="Of the grid; 1 where the picture was classified whole.")
    columns: int
    results: list[Classified] = Field(description="One per patch, row by row; just one without `tile`.")
    counts: dict[str, int] = Field(description="Patches by class, most frequent first.")
    times: Times
    warnings: list[str] = Field(default_factory=list, description="Why the classes should not be believed, if so.")
