"""Studies on the wire: DICOM files in, areas, segmentations and reports out. Names no patient."""

from typing import Literal

from pydantic import Base64Bytes, BaseModel, Field

from fovea.api.image import Words

StudyForm = Literal["segmentation", "report", "strip", "masks"]


class PictureOptions(BaseModel, extra="forbid", frozen=True):
    """How to render frames."""

    window: str | None = Field(None, description="`center,width` for grey frames; left out, the object's own window.")


class StudyOptions(PictureOptions):
    """How to segment a study."""

    model: str | None = Field(None, description="Which model; left out, the default one.")
    threshold: float = Field(0.5, ge=0, le=1, description="Probability from which a pixel belongs to the mask.")
    normalise: Literal["none", "minmax"] = Field(
        "none", description="`minmax` stretches each frame's probabilities to 0..1 before the threshold."
    )
    min_area: int = Field(0, ge=0, description="Components with fewer pixels are dropped.")
    min_peak: float | None = Field(
        None,
        ge=0,
        le=1,
        description="Components in which no pixel is this probable are dropped; left out, as is best for the weights.",
    )
    keep_largest: bool = Field(False, description="Keep the largest component only.")
    include: Words[StudyForm] = Field(
        ("segmentation", "report"),
        description="DICOM SEG and SR of each series; `strip` is a JPEG of its frames, `masks` a PNG of each frame.",
    )
    study: str | None = Field(None, description="Fetch this study from the PACS instead of sending files.")
    series: str | None = Field(None, description="Only this series of it.")
    store: bool = Field(False, description="Store segmentations and reports in the PACS.")


class PixelSizeOut(BaseModel):
    """Size of a pixel, and the attribute that it comes from."""

    row_mm: float
    column_mm: float
    source: str


class BurntInText(BaseModel):
    """Text in the pixels."""

    declared: str | None = Field(description="Of BurnedInAnnotation: YES, NO, or null where it does not say.")
    suspected: bool
    lines: list[tuple[int, int, int, int]] = Field(description="Boxes x1, y1, x2, y2 of what looks like text.")


class FrameOut(BaseModel):
    """One frame; areas in mm² are null where the pixels' size is not known."""

    frame: int = Field(description="1-based, within its object.")
    empty: bool
    area: int = Field(description="Pixels in the mask.")
    area_mm2: float | None
    component_count: int
    max_probability: float
    mean_probability: float
    warnings: list[str] = []
    mask: Base64Bytes | None = Field(None, description="PNG of the mask, if asked for.")


class InstanceOut(BaseModel):
    """One object."""

    file: str = Field(description="Name of the file that it came in.")
    instance: str = Field(description="Its SOP Instance UID; made from its bytes where it has none.")
    modality: str
    rows: int
    columns: int
    pixel_size: PixelSizeOut | None
    edges: dict[str, str] | None = Field(description="The patient's sides at left, right, top and bottom.")
    burnt_in_text: BurntInText
    frames: list[FrameOut]


class SeriesOut(BaseModel):
    """One series of one picture size."""

    series: str
    study: str
    instances: list[InstanceOut]
    segmentation: Base64Bytes | None = Field(None, description="DICOM SEG; null where nothing was found.")
    report: Base64Bytes | None = Field(None, description="DICOM SR, TID 1500.")
    strip: Base64Bytes | None = Field(None, description="JPEG of the frames with their masks.")
    warnings: list[str] = []


class StudyOut(BaseModel):
    """Findings in a study."""

    model: str
    version: str
    series: list[SeriesOut]
    frames: int
    skipped: list[str] = Field(description="Files that are no pictures or can't be read, by name, and why.")
    stored: list[str] = Field([], description="UIDs of the objects that the PACS took.")
    warnings: list[str] = []


class PictureOut(BaseModel):
    """One frame as a picture."""

    file: str = Field(description="Name of the file that it came in.")
    instance: str = Field(description="SOP Instance UID of its object.")
    frame: int = Field(description="1-based, within its object.")
    picture: Base64Bytes = Field(description="PNG, as the network would see it.")


class PicturesOut(BaseModel):
    """The frames of DICOM files as pictures."""

    pictures: list[PictureOut]
    skipped: list[str] = Field(description="Files that are no pictures or can't be read, by name, and why.")


class CorrectionOptions(BaseModel, extra="forbid", frozen=True):
    """Where the pictures of a corrected segmentation are, and who corrected it."""

    study: str | None = Field(None, description="Fetch the pictures of this study from the PACS.")
    series: str | None = Field(None, description="Only this series of it.")
    creator: str = Field("", max_length=64, description="Name of the corrector; stored as Content Creator's Name.")
    store: bool = Field(False, description="Store the new version and its report in the PACS.")


class CorrectionOut(BaseModel):
    """A new version of a segmentation."""

    corrects: str = Field(description="SOP Instance UID of the version before.")
    instance: str = Field(description="SOP Instance UID of the new version, in the same series.")
    version: int = Field(description="Its instance number.")
    frames: int = Field(description="Frames with a mask.")
    changed: list[str] = Field(description="Changed frames, as INSTANCE.FRAME.")
    area: int = Field(description="Pixels in all masks.")
    segmentation: Base64Bytes = Field(description="DICOM SEG.")
    report: Base64Bytes = Field(description="DICOM SR of the new areas.")
    skipped: list[str]
    stored: list[str] = []
