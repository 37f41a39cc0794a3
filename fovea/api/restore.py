"""Restoration on the wire: one picture in, the same picture without its reflections out, at the same size.

Pixels are those of the upright original. Large pictures are worked on in a smaller copy, and in tiles; an answer says
how many, and `dry_run` asks only what a request would cost.
"""

from typing import Literal

from pydantic import BaseModel, Field

from fovea.api.image import ImageBytes, PictureAnswer, PictureIn, Words

Layer = Literal["restored", "reflection", "comparison"]
"""Parts of an answer besides its numbers."""

Resolution = Literal["auto", "full", "preview"]
"""Size of the copy in which reflections are looked for."""


class RestoreIn(PictureIn):
    """A picture to restore, and how."""

    image: ImageBytes = Field(description="PNG, JPEG, WebP, TIFF or BMP, 8 or 16 bits per channel.")
    reference: ImageBytes | None = Field(
        None, description="The same view without reflections: the answer then says how like it the result is."
    )
    variant: Literal["paper", "released"] | None = Field(
        None, description="`paper` uses the transformer body, `released` leaves it out; by default as trained."
    )
    format: Literal["same", "png", "jpeg", "webp"] = Field(
        "same", description="Of the result; `same` keeps PNG, JPEG and WebP, and makes a PNG of anything else."
    )
    bit_depth: Literal["same", "8", "16"] = Field("same", description="Bits per channel of the result; 16 as PNG only.")
    quality: int = Field(92, ge=1, le=100, description="Of JPEG and WebP.")
    include: Words[Layer] = Field(
        ("restored",),
        description="`restored`; `reflection`, what was taken away; `comparison`, before and after side by side.",
    )
    picture: Layer | None = Field(
        None,
        description="Picture that answers an `Accept` header that asks for one instead of JSON; left out, the first of "
        "`include`: the restored picture unless that asks for another.",
    )
    resolution: Resolution = Field(
        "auto",
        description="Where reflections are looked for: `full`, in every pixel; `auto`, in a copy of 2 megapixels where "
        "the picture has more; `preview`, in a copy of 0.25. The change is carried over to the whole picture.",
    )
    tile_core: int | None = Field(
        None,
        ge=32,
        le=4096,
        multiple_of=32,
        description="Side of what is kept of a tile, pixels; by default the largest that `memory_mib` allows.",
    )
    tile_context: int | None = Field(
        None,
        ge=0,
        le=512,
        multiple_of=32,
        description="Margin of a tile beyond its core on each side; by default enough for tiles to equal the whole.",
    )
    memory_mib: int = Field(
        1024, ge=64, le=262_144, description="Memory that one tile may take while the network runs, MiB."
    )
    dry_run: bool = Field(False, description="Only estimate time and memory; nothing is restored.")

    @property
    def shown(self) -> Layer:
        """Form of the answer where a picture is requested."""
        return self.picture or (self.include[0] if self.include else "restored")


class Estimate(BaseModel):
    """Cost of a request on this machine, by the pace of earlier tiles."""

    seconds: float
    memory_mib: int = Field(description="Network and pictures together, beyond what the idle service takes.")
    tiles: int
    tile_core: int
    tile_context: int


class ImageSimilarity(BaseModel):
    """How like the reference a picture is, in 8 bits."""

    psnr: float | None = Field(description="dB; null for equal pictures, whose PSNR is infinite.")
    ssim: float | None = Field(description="Null where a side is shorter than 11 pixels.")


class RestoreTimes(BaseModel):
    """Where the time went, in milliseconds."""

    decode: float = 0.0
    infer: float = 0.0
    encode: float = 0.0


class RestoreOut(PictureAnswer):
    """A restored picture, of the original's size."""

    variant: Literal["paper", "released"]
    format: Literal["png", "jpeg", "webp"]
    bit_depth: Literal[8, 16]
    estimate: Estimate = Field(description="Made before the start.")
    restored: ImageBytes | None = Field(None, description="The result; null for a dry run.")
    reflection: ImageBytes | None = Field(None, description="PNG of what was taken away, input minus result.")
    comparison: ImageBytes | None = Field(
        None, description="JPEG: before, and after; at most 2,048 pixels high or wide."
    )
    mean_change: float = Field(0.0, description="Mean absolute difference of result and input, as a share of white.")
    likeness: ImageSimilarity | None = Field(None, description="Of the result to the reference.")
    input_likeness: ImageSimilarity | None = Field(None, description="Likeness of the input to the reference.")
    times: RestoreTimes
    notes: list[str] = Field(default_factory=list, description="Peculiarities of the file, and lost parts.")
