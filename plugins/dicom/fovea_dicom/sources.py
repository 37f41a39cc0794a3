"""Source objects as highdicom takes them: required attributes filled in, and geometry where there is none.

Endoscopy and ultrasound have no frame of reference, while highdicom segments several frames only inside of one. Copies
get a made-up one, and `remove_geometry` takes it out of the finished segmentation again.
"""

import copy
import datetime as dt
import re
from collections.abc import Sequence
from typing import TypeVar

from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.tag import Tag
from pydicom.uid import (
    MultiFrameTrueColorSecondaryCaptureImageStorage,
    SecondaryCaptureImageStorage,
    generate_uid,
)
from pydicom.valuerep import DSfloat

from fovea_dicom.geometry import count_frames, find_functional_item, find_pixel_size, read_numbers

AnyDataset = TypeVar("AnyDataset", bound=Dataset)

EMPTY = (
    "PatientID", "PatientName", "PatientBirthDate", "PatientSex", "StudyID", "StudyDate", "StudyTime",
    "AccessionNumber", "ReferringPhysicianName",
)  # fmt: skip
"""Attributes of type 2: they must be there, and may be empty."""
FORMS = {
    "PatientBirthDate": r"\d{8}", "StudyDate": r"\d{8}", "PatientSex": "[FMO]",
    "StudyTime": r"([01]\d|2[0-3])([0-5]\d([0-5]\d(\.\d{1,6})?)?)?",
    "AccessionNumber": r".{1,16}", "StudyID": r".{1,16}",
}  # fmt: skip
"""Forms of values that no derived object may repeat otherwise: others are left out."""
UNICODE = "ISO_IR 192"
"""Of derived objects: it holds any patient's name, whatever character set the source has, and any corrector's."""
STACK = "1"
"""All frames of a series without geometry form one stack, in the order of the segmentation's frames."""
STILL, FILM = SecondaryCaptureImageStorage, MultiFrameTrueColorSecondaryCaptureImageStorage
"""Classes that stand in for those of sources while highdicom builds an object."""


def fill_identity(sources: Sequence[Dataset]) -> list[Dataset]:
    """Copies with the attributes that every derived object repeats."""
    found = []
    for source in sources:
        one = copy_object(source)
        for name in EMPTY:
            if name not in one or one[name].VM > 1:  # bytes of an unknown character set may look like the separator
                setattr(one, name, "")
        for name, form in FORMS.items():
            text = str(one.get(name) or "")
            if not re.fullmatch(form, text) or (name.endswith("Date") and not _is_date(text)):
                setattr(one, name, "")
        one.SpecificCharacterSet = UNICODE
        found.append(one)
    return found


def _is_date(text: str) -> bool:
    try:
        return bool(dt.date(int(text[:4]), int(text[4:6]), int(text[6:])))
    except ValueError:
        return False


def has_geometry(sources: Sequence[Dataset]) -> bool:
    """Whether a segmentation can say where the frames lie.

    All must be in one frame of reference, turned alike, with pixels of one size, and no two at the same position, as
    those of planes that cross and of a plane seen several times are.
    """
    references = {str(one.get("FrameOfReferenceUID") or "") for one in sources}
    planes = [_find_plane(one, index) for one in sources for index in range(count_frames(one))]
    positions, shapes = ({plane[part] for plane in planes} for part in (slice(1), slice(1, 3)))
    is_known = all(number is not None for plane in planes for number in plane)
    return len(references) == len(shapes) == 1 and "" not in references and is_known and len(positions) == len(planes)


def make_geometry(sources: Sequence[Dataset]) -> list[Dataset]:
    """Copies whose frames lie behind each other in a made-up frame of reference.

    highdicom orders frames from the highest position to the lowest, so positions fall: a segmentation keeps the order
    of its sources. Copies are of a class that it knows and that fits their frames, which `restore_classes` takes back.
    """
    reference, found = generate_uid(), []
    for place, source in enumerate(sources):
        one = copy_object(source)
        size = find_pixel_size(source)
        spacing = [DSfloat(mm, auto_format=True) for mm in ((size.row_mm, size.column_mm) if size else (1.0, 1.0))]
        one.FrameOfReferenceUID, one.PositionReferenceIndicator = reference, ""
        one.ImageOrientationPatient, one.PixelSpacing = [1, 0, 0, 0, 1, 0], spacing
        one.ImagePositionPatient, one.SliceThickness = [0, 0, -place], 1.0
        frames = count_frames(one)
        one.SOPClassUID = STILL
        if frames > 1:
            one.SOPClassUID = FILM
            one.SharedFunctionalGroupsSequence = [_shared(spacing)]
            one.PerFrameFunctionalGroupsSequence = [
                make_item(PlanePositionSequence=[make_item(ImagePositionPatient=[0, 0, -number])])
                for number in range(frames)
            ]
        found.append(one)
    return found


def remove_geometry(segmentation: Dataset, sources: Sequence[Dataset], *, keep_size: bool) -> None:
    """Take what `make_geometry` made up out of a segmentation; frames then differ by what they derive from."""
    restore_classes(segmentation, sources)
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
    index = copy_object(segment)
    index.DimensionIndexPointer = Tag("InStackPositionNumber")
    index.FunctionalGroupPointer = Tag("FrameContentSequence")
    index.DimensionDescriptionLabel = "In-Stack Position Number"
    segmentation.DimensionIndexSequence = [segment, index]


def name_still(sources: Sequence[Dataset]) -> list[Dataset]:
    """Copies of the class `STILL`, which `restore_classes` takes back."""
    found = [copy_object(source) for source in sources]
    for one in found:
        one.SOPClassUID = STILL
    return found


def restore_classes(made: Dataset, sources: Sequence[Dataset]) -> None:
    """Write the sources' own classes into all references to them.

    highdicom knows no old and private classes, and takes those of films to have groups for each frame, while devices
    store stills in them.
    """
    classes = {str(one.SOPInstanceUID): one.SOPClassUID for one in sources}

    def name_class(item: Dataset, element: DataElement) -> None:
        if element.keyword == "ReferencedSOPClassUID":
            element.value = classes.get(str(item.ReferencedSOPInstanceUID), element.value)

    made.walk(name_class)


def copy_object(source: AnyDataset) -> AnyDataset:
    """A copy with elements of its own; `copy.copy` would let both write into one dictionary, and pixels are shared."""
    one = copy.copy(source)
    one._dict = {tag: copy.copy(element) for tag, element in source._dict.items()}  # noqa: SLF001  # no public way
    return one


def _find_plane(source: Dataset, index: int) -> tuple[tuple[float, ...] | None, ...]:
    """Position, orientation and pixel size of a frame, each None where it is not said; of many only by groups."""
    found = []
    for name, attribute, count in (
        ("PlanePositionSequence", "ImagePositionPatient", 3),
        ("PlaneOrientationSequence", "ImageOrientationPatient", 6),
        ("PixelMeasuresSequence", "PixelSpacing", 2),
    ):
        item = find_functional_item(source, name, index)
        own = source.get(attribute) if count_frames(source) == 1 else None
        numbers = read_numbers((item.get(attribute) if item is not None else None) or own, count)
        found.append(None if numbers is None else tuple(round(number, 4) for number in numbers))
    return tuple(found)


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
