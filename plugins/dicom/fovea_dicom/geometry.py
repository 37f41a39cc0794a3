"""Frames of an object: how many there are, their pixels' size in mm, and the patient's sides at their edges."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from pydicom.dataset import Dataset

Source = Literal["PixelSpacing", "NominalScannedPixelSpacing", "ImagerPixelSpacing", "UltrasoundRegion"]

CENTIMETRES = 3
"""Code of ultrasound regions' units."""
LETTERS = (("L", "R"), ("P", "A"), ("H", "F"))
"""Patient's side towards + and − of each axis (left, posterior, head)."""


@dataclass(frozen=True)
class PixelSize:
    """Millimetres of a pixel, and the attribute that states them."""

    row_mm: float
    column_mm: float
    source: Source

    @property
    def area_mm2(self) -> float:
        """Square millimetres of one pixel."""
        return self.row_mm * self.column_mm

    @property
    def is_at_detector(self) -> bool:
        """Whether the size is measured at the detector."""
        return self.source == "ImagerPixelSpacing"


def count_frames(dataset: Dataset) -> int:
    """Frames of an object; 1 where it does not say, or nothing that is a number."""
    try:
        return max(int(dataset.get("NumberOfFrames") or 1), 1)
    except (TypeError, ValueError):
        return 1


def find_functional_item(dataset: Dataset, name: str, index: int) -> Dataset | None:
    """An item of an enhanced object's functional groups: the frame's own, or the shared one."""
    frames = dataset.get("PerFrameFunctionalGroupsSequence") or ()
    shared = dataset.get("SharedFunctionalGroupsSequence") or ()
    for group in (*frames[index : index + 1], *shared[:1]):
        sequence = group.get(name)
        if sequence:
            found: Dataset = sequence[0]
            return found
    return None


def find_pixel_size(dataset: Dataset, index: int = 0) -> PixelSize | None:
    """The size of a frame's pixels; None where the object does not say, as in endoscopy.

    Of ultrasound it is that of the only region that is measured in centimetres on both axes.
    """
    measures = find_functional_item(dataset, "PixelMeasuresSequence", index)
    names: tuple[Source, ...] = ("PixelSpacing", "NominalScannedPixelSpacing", "ImagerPixelSpacing")
    for item in filter(None, (measures, dataset)):
        for name in names:
            numbers = read_numbers(item.get(name), 2)
            if numbers is not None and min(numbers) > 0:
                return PixelSize(numbers[0], numbers[1], name)
    return _ultrasound(dataset)


def find_edges(dataset: Dataset, index: int = 0) -> dict[str, str] | None:
    """The patient's sides at `left`, `right`, `top` and `bottom` of the picture, such as `R`, `L`, `A`, `P`, `HP`.

    From the direction cosines, or from PatientOrientation; None where there is neither.
    """
    plane = find_functional_item(dataset, "PlaneOrientationSequence", index) or dataset
    cosines = read_numbers(plane.get("ImageOrientationPatient"), 6)
    if cosines is not None:
        across, down = _letters(cosines[:3]), _letters(cosines[3:])
        against = [_letters([-value for value in part]) for part in (cosines[:3], cosines[3:])]
        return {"left": against[0], "right": across, "top": against[1], "bottom": down}
    named = dataset.get("PatientOrientation") or ()
    if len(named) == 2 and all(named):
        flip = str.maketrans("LRPAHF", "RLAPFH")
        right, bottom = (str(name) for name in named)
        return {"left": right.translate(flip), "right": right, "top": bottom.translate(flip), "bottom": bottom}
    return None


def _letters(direction: Sequence[float]) -> str:
    """Sides that a direction points to, the nearest axis first; those below sin 5° are left out."""
    order = np.argsort([-abs(value) for value in direction], kind="stable")
    return "".join(LETTERS[axis][direction[axis] < 0] for axis in order if abs(direction[axis]) > 0.087)


def _ultrasound(dataset: Dataset) -> PixelSize | None:
    sizes = set()
    for region in dataset.get("SequenceOfUltrasoundRegions") or ():
        units = region.get("PhysicalUnitsXDirection"), region.get("PhysicalUnitsYDirection")
        deltas = read_numbers([region.get("PhysicalDeltaY"), region.get("PhysicalDeltaX")], 2)
        if units == (CENTIMETRES, CENTIMETRES) and deltas is not None and all(deltas):
            sizes.add((abs(deltas[0]) * 10, abs(deltas[1]) * 10))
    return PixelSize(*sizes.pop(), "UltrasoundRegion") if len(sizes) == 1 else None


def read_numbers(value: object, count: int) -> list[float] | None:
    """So many finite numbers, None where a file holds anything else."""
    try:
        found = [float(part) for part in value]  # type: ignore[attr-defined]  # whatever a file holds
    except (TypeError, ValueError):
        return None
    return found if len(found) == count and all(np.isfinite(found)) else None
