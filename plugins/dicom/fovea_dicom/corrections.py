"""Corrected masks → a new version of their segmentation, and a report of its areas.

A correction is an edited PNG for each changed frame, named `INSTANCE.FRAME.png` as `include=masks` gives them, or a
DICOM segmentation that a viewer saved. Frames without a PNG keep their masks.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileDataset

from fovea.errors import InvalidOption, Malformed
from fovea_dicom.bodies import MAX_UNPACKED_BYTES, NamedFile, is_dicom
from fovea_dicom.derived_objects import MaskFinding, build_report, build_segmentation, to_bytes
from fovea_dicom.geometry import count_frames, find_pixel_size
from fovea_dicom.reading import count_inflated, decode_stored, read_object
from fovea_dicom.schemas import CorrectionOut
from fovea_dicom.sources import fill_identity
from fovea_dicom.study import sort_out
from shared.vision.decode import decode
from shared.vision.limits import DecodeBounds
from shared.vision.mask_regions import find_regions

Mask = NDArray[np.bool_]
Frame = tuple[str, int]
"""SOP Instance UID, and the 1-based number of a frame."""


def correct_segmentation(
    pictures: Sequence[NamedFile],
    segmentation: bytes,
    corrected: Sequence[NamedFile],
    bounds: DecodeBounds,
    creator: str = "",
) -> CorrectionOut:
    """Make a new version of a segmentation from edited masks.

    Pictures of other series than the segmented one are left out; `bounds` limit a PNG. Raises InvalidOption: the parts
    do not belong together, or nothing is left in any mask; Malformed: a part can't be read.
    """
    before = _read_segmentation(NamedFile("segmentation", segmentation))
    sources, skipped = _find_sources(pictures, before)
    frames = [(str(one.SOPInstanceUID), number) for one in sources for number in range(1, count_frames(one) + 1)]
    shape = int(sources[0].Rows), int(sources[0].Columns)
    old = read_masks(before)
    new = old | _read_corrections(corrected, frames, shape, bounds)
    _check_frames(new, frames, shape)
    masks = np.stack([new.get(frame, np.zeros(shape, bool)) for frame in frames])
    if not masks.any():
        detail = "Nothing is left in any mask, and a segmentation can't be empty."
        raise InvalidOption(detail, hint="Delete the segmentation in the PACS instead.", field="corrected")
    copies, (segment, *_) = fill_identity(sources), before.SegmentSequence
    model, version = str(before.get("ManufacturerModelName") or "unknown"), str(before.get("SoftwareVersions") or "1")
    facts = {"model": model, "version": version}
    label = str(segment.get("SegmentLabel") or "lesion")
    seg = build_segmentation(copies, masks, label=label, corrects=before, creator=creator, **facts)
    report = build_report(copies, seg, _measure(copies, masks), **facts)
    empty = np.zeros(shape, bool)
    changed = [frame for frame in frames if (old.get(frame, empty) != new.get(frame, empty)).any()]
    return CorrectionOut.model_construct(
        corrects=str(before.SOPInstanceUID),
        instance=str(seg.SOPInstanceUID),
        version=int(seg.InstanceNumber),
        frames=int(masks.any((1, 2)).sum()),
        changed=[f"{instance}.{number}" for instance, number in changed],
        area=int(masks.sum()),
        segmentation=to_bytes(seg),
        report=to_bytes(report),
        skipped=skipped,
        stored=[],
    )


def read_masks(segmentation: FileDataset) -> dict[Frame, Mask]:
    """Return the masks of a segmentation by the frames that they derive from; segments of one frame are united.

    Of fractions, such as probabilities, those from a half belong to the mask.

    Raises Malformed: its pixels or references can't be read; InvalidOption: it has no references.
    """
    found: dict[Frame, Mask] = {}
    try:
        pixels = np.stack([decode_stored(segmentation, index) for index in range(count_frames(segmentation))])
        is_fractional = segmentation.get("SegmentationType") == "FRACTIONAL"
        least = int(segmentation.MaximumFractionalValue) / 2 if is_fractional else 1
        masks = pixels >= least
        for group, mask in zip(segmentation.PerFrameFunctionalGroupsSequence, masks, strict=True):
            for item in group.get("DerivationImageSequence") or ():
                for source in item.get("SourceImageSequence") or ():
                    numbers = source.get("ReferencedFrameNumber") or 1
                    for number in numbers if isinstance(numbers, Sequence) else (numbers,):
                        frame = str(source.ReferencedSOPInstanceUID), int(number)
                        found[frame] = found[frame] | mask if frame in found else mask
    except Exception as error:  # pydicom raises whatever a damaged file trips over
        detail = "The segmentation's masks can't be read."
        raise Malformed(detail, hint="Export it again as a DICOM segmentation.", field="segmentation") from error
    if not found:
        detail = "The segmentation does not say which frames its masks are of (Derivation Image Sequence)."
        raise InvalidOption(detail, hint="Export it with references to its pictures.", field="segmentation")
    return found


def _read_segmentation(file: NamedFile) -> FileDataset:
    count_inflated(file.data, MAX_UNPACKED_BYTES)
    found = read_object(file.data)
    if found.get("Modality") != "SEG" or not found.get("SegmentSequence") or "PixelData" not in found:
        raise InvalidOption(f"{file.name} is not a DICOM segmentation.", field="segmentation")
    if missing := [name for name in ("SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID") if not found.get(name)]:
        detail = f"{file.name} lacks {missing[0]}, which a new version refers to."
        raise Malformed(detail, hint="Export it again as a DICOM segmentation.", field="segmentation")
    return found


def _find_sources(pictures: Sequence[NamedFile], before: FileDataset) -> tuple[list[FileDataset], list[str]]:
    """The pictures of the series that a segmentation is of, and why others are left out."""
    series = {str(one.get("SeriesInstanceUID")) for one in before.get("ReferencedSeriesSequence") or ()}
    (rows, skipped), instances = sort_out(pictures), {instance for instance, _ in read_masks(before)}
    # Of objects without a series the segmentation names one that was made up.
    is_own = [str(one.get("SeriesInstanceUID")) in series or str(one.SOPInstanceUID) in instances for _, one in rows]
    own = [one for (_, one), its in zip(rows, is_own, strict=True) if its]
    skipped += [f"{name}: of another series." for (name, _), its in zip(rows, is_own, strict=True) if not its]
    size = before.Rows, before.Columns
    sized = [one for one in own if (one.get("Rows"), one.get("Columns")) == size]
    if any(count_frames(one) > 1 for one in sized):
        sized = [one for one in sized if str(one.get("SOPInstanceUID")) in instances]
    if missing := instances - {str(one.get("SOPInstanceUID")) for one in sized}:
        hint = "Send the DICOM files that were segmented as `files`, or name their `study` in the PACS."
        raise InvalidOption(f"The picture {min(missing)} of the segmentation is missing.", hint=hint, field="files")
    return sized, skipped


def _read_corrections(
    corrected: Sequence[NamedFile], frames: Sequence[Frame], shape: tuple[int, int], bounds: DecodeBounds
) -> dict[Frame, Mask]:
    if not corrected:
        hint = "Send edited PNGs named INSTANCE.FRAME.png, or a DICOM segmentation, as `corrected`."
        raise InvalidOption("There is no corrected mask.", hint=hint, field="corrected")
    found: dict[Frame, Mask] = {}
    for file in corrected:
        if is_dicom(file.data):
            given = read_masks(_read_segmentation(file))
            # A viewer leaves frames without a mask out: what it saves is the whole of its segmentation.
            found |= {frame: given.get(frame, np.zeros(shape, bool)) for frame in frames} | given
            continue
        named = re.fullmatch(r"([0-9.]+)\.([0-9]+)\.png", PurePosixPath(file.name).name, re.IGNORECASE)
        if named is None:
            raise InvalidOption(f"{file.name} is not named INSTANCE.FRAME.png.", field="corrected")
        try:
            pixels = decode(file.data, bounds, page="black").pixels  # an eraser may leave a hole, which is not a mask
        except Malformed as error:
            raise Malformed(f"{file.name}: {error.detail}", field="corrected") from error
        found[named[1], int(named[2])] = pixels.max(axis=-1) > 127
    return found


def _check_frames(masks: Mapping[Frame, Mask], frames: Sequence[Frame], shape: tuple[int, int]) -> None:
    for (instance, number), mask in masks.items():
        if (instance, number) not in set(frames):
            raise InvalidOption(f"The pictures have no frame {number} of {instance}.", field="corrected")
        if mask.shape != shape:
            detail = f"The mask of {instance}, frame {number}, is {mask.shape[1]} × {mask.shape[0]}; its picture is "
            raise InvalidOption(f"{detail}{shape[1]} × {shape[0]}.", field="corrected")


def _measure(sources: Sequence[Dataset], masks: Mask) -> list[MaskFinding]:
    """Measure masks; nobody knows a probability of what a person drew."""
    owners = [(one, number) for one in sources for number in range(count_frames(one))]
    found = []
    for place, ((one, number), mask) in enumerate(zip(owners, masks, strict=True)):
        if area := int(mask.sum()):
            size = find_pixel_size(one, number)
            area_mm2 = area * size.area_mm2 if size else None
            found.append(MaskFinding(place, area, area_mm2, len(find_regions(mask)[0]), None))
    return found
