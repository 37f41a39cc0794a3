"""Source objects as highdicom takes them: required attributes filled in, and geometry where there is none.

Endoscopy and ultrasound have no frame of reference, while highdicom segments several frames only inside of one. Copies
get a made-up one, and `remove_geometry` takes it out of the finished segmentation again.
"""

import copy
import re
from collections.abc import Sequence

from pydicom.dataset import Dataset
from pydicom.tag import Tag
from pydicom.uid import generate_uid
from pydicom.valuerep import DSfloat

from fovea_dicom.geometry import count_frames, find_functional_item, find_pixel_size

EMPTY = (
    "PatientID", "PatientName", "PatientBirthDate", "PatientSex", "StudyID", "StudyDate", "StudyTime",
    "AccessionNumber", "ReferringPhysicianName",
)  # fmt: skip
"""Attributes of type 2: they must be there, and may be empty."""
DATES = {"PatientBirthDate": r"\d{8}", "StudyDate": r"\d{8}", "StudyTime": r"\d{2,6}(\.\d{1,6})?"}
"""Forms of dates and times; values of another form are left out, as no derived object may repeat them."""
STACK = "1"
"""All frames of a series without geometry form one stack, in the order of the segmentation's frames."""
UIDS = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")


def fill_identity(sources: Sequence[Dataset]) -> list[Dataset]:
    """Copies with the attributes that every derived object repeats; missing ids are generated once for all copies."""
    made = {name: generate_uid() for name in UIDS[:2]}
    found = []
    for source in sources:
        one = _copy(source)
        for name in EMPTY:
            if name not in one:
                setattr(one, name, "")
        for name, form in DATES.items():
            if not re.fullmatch(form, str(one.get(name) or "")):
                setattr(one, name, "")
        for name in UIDS:
            if not one.get(name):
                setattr(one, name, made.get(name) or generate_uid())
        found.append(one)
    return found


def has_geometry(sources: Sequence[Dataset]) -> bool:
    """Whether every frame of the sources has its place in one frame of reference."""
    references = {str(one.get("FrameOfReferenceUID") or "") for one in sources}
    return len(references) == 1 and "" not in references and all(map(_is_placed, sources))


def make_geometry(sources: Sequence[Dataset]) -> list[Dataset]:
    """Copies whose frames lie behind each other in a made-up frame of reference.

    highdicom orders frames from the highest position to the lowest, so positions fall: a segmentation keeps the order
    of its sources.
    """
    reference, found = generate_uid(), []
    for place, source in enumerate(sources):
        one = _copy(source)
        size = find_pixel_size(source)
        spacing = [DSfloat(mm, auto_format=True) for mm in ((size.row_mm, size.column_mm) if size else (1.0, 1.0))]
        one.FrameOfReferenceUID, one.PositionReferenceIndicator = reference, ""
        one.ImageOrientationPatient, one.PixelSpacing = [1, 0, 0, 0, 1, 0], spacing
        one.ImagePositionPatient, one.SliceThickness = [0, 0, -place], 1.0
        frames = count_frames(one)
        if frames > 1:
            one.SharedFunctionalGroupsSequence = [_shared(spacing)]
            one.PerFrameFunctionalGroupsSequence = [
                make_item(PlanePositionSequence=[make_item(ImagePositionPatient=[0, 0, -number])])
                for number in range(frames)
            ]
        found.append(one)
    return found


def remove_geometry(segmentation: Dataset, *, keep_size: bool) -> None:
    """Take the made-up frame of reference out of a segmentation; frames then differ by what they derive from."""
    for name in ("FrameOfReferenceUID", "PositionReferenceIndicator"):
        if name in segmentation:
            delattr(segmentation, name)
    shared = segmentation.SharedFunctionalGroupsSequence[0]
    for name in ("PlaneOrientationSequence", *(() if keep_size else ("PixelMeasuresSequence",))):
        if name in shared:
            delattr(shared, name)
    for number, group in enumerate(segmentation.PerFrameFunctionalGroupsSequence, 1):
        for name in ("PlanePositionSequence", "PlaneOrientationSequence"):
            if name in group:
                delattr(group, name)
        content = group.FrameContentSequence[0]
        content.StackID, content.InStackPositionNumber, content.DimensionIndexValues = STACK, number, [1, number]
    segment = segmentation.DimensionIndexSequence[0]
    index = _copy(segment)
    index.DimensionIndexPointer = Tag("InStackPositionNumber")
    index.FunctionalGroupPointer = Tag("FrameContentSequence")
    index.DimensionDescriptionLabel = "In-Stack Position Number"
    segmentation.DimensionIndexSequence = [segment, index]


def _copy(source: Dataset) -> Dataset:
    """A copy with elements of its own; `copy.copy` would let both write into one dictionary, and pixels are shared."""
    one = copy.copy(source)
    one._dict = {tag: copy.copy(element) for tag, element in source._dict.items()}  # noqa: SLF001  # no public way
    return one


def _is_placed(source: Dataset) -> bool:
    is_single = count_frames(source) == 1
    for name, attribute in (
        ("PlanePositionSequence", "ImagePositionPatient"),
        ("PlaneOrientationSequence", "ImageOrientationPatient"),
        ("PixelMeasuresSequence", "PixelSpacing"),
    ):
        item = find_functional_item(source, name, 0)
        if not (item is not None and item.get(attribute)) and not (is_single and source.get(attribute)):
            return False
    return True


def make_item(**values: object) -> Dataset:
    """An item of a sequence."""
    found = Dataset()
    for name, value in values.items():
        setattr(found, name, value)
    return found


def _shared(spacing: list[DSfloat]) -> Dataset:
    return make_item(
        PixelMeasuresSequence=[make_item(PixelSpacing=spacing, SliceThickness=1.0)],
        PlaneOrientationSequence=[make_item(ImageOrientationPatient=[1, 0, 0, 0, 1, 0])],
    )
