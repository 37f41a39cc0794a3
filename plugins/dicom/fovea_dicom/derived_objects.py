"""DICOM objects made of masks: a segmentation (SEG) of a series, and a structured report (TID 1500) of its areas.

Knows highdicom, pixel data and geometry; knows nothing about networks and HTTP.
"""

import io
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import highdicom as hd
import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.uid import ExplicitVRLittleEndian

from fovea_dicom.geometry import count_frames, find_pixel_size
from fovea_dicom.sources import (
    STILL,
    has_geometry,
    make_geometry,
    make_item,
    name_still,
    remove_geometry,
    restore_classes,
)

MANUFACTURER = "Fovea"
POLYP = hd.sr.CodedConcept("41329004", "SCT", "Polyp")
SEG_SERIES, REPORT_SERIES = 9001, 9002
LONGEST = 64
"""Letters of a description."""

Masks = NDArray[np.bool_]


@dataclass(frozen=True)
class MaskFinding:
    """A frame's mask that is not empty: pixels, mm² where the pixels' size is known, and how many components.

    `frame` is 0-based, over all frames of the series' objects in order; `probability` is the mean over its pixels, None
    where a person drew it.
    """

    frame: int
    area: int
    area_mm2: float | None
    components: int
    probability: float | None


def build_segmentation(
    sources: Sequence[Dataset],
    masks: Masks,
    *,
    label: str,
    model: str,
    version: str,
    corrects: Dataset | None = None,
    creator: str = "",
) -> Dataset:
    """Build a binary segmentation of one segment.

    Sources are one multi-frame object, or single-frame objects of one series and one size, from `fill_identity`. Masks
    are (frames, h, w), some pixel set; empty frames are left out. The new version of what a person (`creator`) corrects
    is in the same series and tracks the same.
    """
    number = 1 if corrects is None else int(corrects.get("InstanceNumber") or 1) + 1
    is_placed = has_geometry(sources)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = hd.seg.Segmentation(
            source_images=sources if is_placed else make_geometry(sources),
            pixel_array=masks,
            segmentation_type=hd.seg.SegmentationTypeValues.BINARY,
            segment_descriptions=[_describe_segment(label, model, version, corrects)],
            series_instance_uid=hd.UID() if corrects is None else corrects.SeriesInstanceUID,
            series_number=SEG_SERIES if corrects is None else corrects.get("SeriesNumber") or SEG_SERIES,
            sop_instance_uid=hd.UID(),
            instance_number=number,
            content_description=None if corrects is None else f"Version {number}, corrected",
            content_creator_name=creator or None,
            manufacturer=MANUFACTURER,
            manufacturer_model_name=model,
            software_versions=version,
            device_serial_number="0",
            content_label="SEGMENTATION",
            series_description=f"{label}, {model}"[:LONGEST],
        )
    if not is_placed:
        sizes = {find_pixel_size(one, index) for one in sources for index in range(count_frames(one))}
        remove_geometry(found, sources, keep_size=len(sizes) == 1 and None not in sizes)
    if corrects is not None:
        purpose = hd.sr.CodedConcept("corrects", "99FOVEA", "Version that this one corrects")
        found.ReferencedInstanceSequence = [
            make_item(
                ReferencedSOPClassUID=corrects.SOPClassUID,
                ReferencedSOPInstanceUID=corrects.SOPInstanceUID,
                PurposeOfReferenceCodeSequence=[purpose],
            )
        ]
    return found


def _describe_segment(label: str, model: str, version: str, corrects: Dataset | None) -> hd.seg.SegmentDescription:
    """What the segment is and who made it: the model alone, or a person with it."""
    kinds = hd.seg.SegmentAlgorithmTypeValues
    return hd.seg.SegmentDescription(
        segment_number=1,
        segment_label=label,
        segmented_property_category=codes.SCT.MorphologicallyAbnormalStructure,
        segmented_property_type=POLYP if label == "polyp" else codes.SCT.Lesion,
        algorithm_type=kinds.AUTOMATIC if corrects is None else kinds.SEMIAUTOMATIC,
        algorithm_identification=hd.AlgorithmIdentificationSequence(
            name=model, version=version, family=codes.DCM.ArtificialIntelligence, source=MANUFACTURER
        ),
        tracking_uid=hd.UID() if corrects is None else corrects.SegmentSequence[0].get("TrackingUID") or hd.UID(),
        tracking_id=f"{label} 1",
    )


def build_report(
    sources: Sequence[Dataset], segmentation: Dataset, findings: Sequence[MaskFinding], *, model: str, version: str
) -> Dataset:
    """A structured report: for every frame with findings the area of its mask, and their mean probability.

    Sources are those of `build_segmentation`, in the same order; the report refers to the frames of what it returned.
    """
    observer = hd.sr.ObserverContext(
        observer_type=codes.DCM.Device,
        observer_identifying_attributes=hd.sr.DeviceObserverIdentifyingAttributes(
            uid=hd.UID(), name=model, manufacturer_name=MANUFACTURER, model_name=model, serial_number="0"
        ),
    )
    places = _find_places(sources, segmentation)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        groups = [_measure_frame(segmentation, places[one.frame], one, model, version) for one in findings]
        content = hd.sr.MeasurementReport(
            observation_context=hd.sr.ObservationContext(observer_device_context=observer),
            procedure_reported=codes.SCT.ImagingProcedure,
            imaging_measurements=groups,
            title=codes.DCM.ImagingMeasurementReport,
        )
        report = hd.sr.ComprehensiveSR(
            evidence=[*name_still(sources), segmentation],
            content=content,
            series_instance_uid=hd.UID(),
            series_number=REPORT_SERIES,
            sop_instance_uid=hd.UID(),
            instance_number=1,
            manufacturer=MANUFACTURER,
            is_complete=True,
            series_description=f"Areas, {model}"[:LONGEST],
        )
    restore_classes(report, sources)
    return report


def to_bytes(dataset: Dataset) -> bytes:
    """A DICOM file of an object."""
    out = io.BytesIO()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.save_as(out, enforce_file_format=True)
    return out.getvalue()


def _measure_frame(
    segmentation: Dataset, place: int, finding: MaskFinding, model: str, version: str
) -> hd.sr.PlanarROIMeasurementsAndQualitativeEvaluations:
    """The measurements of one frame of the segmentation, 1-based."""
    if finding.area_mm2 is None:
        value, unit = float(finding.area), hd.sr.CodedConcept("{pixels}", "UCUM", "pixels")
    else:
        value, unit = round(finding.area_mm2, 4), codes.UCUM.SquareMillimeter
    measured = [
        hd.sr.Measurement(name=codes.SCT.Area, value=value, unit=unit),
        hd.sr.Measurement(
            name=hd.sr.CodedConcept("components", "99FOVEA", "Components of the mask"),
            value=float(finding.components),
            unit=codes.UCUM.NoUnits,
        ),
    ]
    if finding.probability is not None:
        probability = hd.sr.Measurement(
            name=hd.sr.CodedConcept("mean-probability", "99FOVEA", "Mean probability of the mask"),
            value=round(finding.probability, 6),
            unit=codes.UCUM.NoUnits,
        )
        measured.insert(1, probability)
    return hd.sr.PlanarROIMeasurementsAndQualitativeEvaluations(
        tracking_identifier=hd.sr.TrackingIdentifier(uid=hd.UID(), identifier=f"finding {place}"),
        referenced_segment=_refer(segmentation, place),
        finding_type=codes.SCT.Lesion,
        algorithm_id=hd.sr.AlgorithmIdentification(name=model, version=version),
        measurements=measured,
    )


def _find_places(sources: Sequence[Dataset], segmentation: Dataset) -> dict[int, int]:
    """The segmentation's frame (1-based) for each frame of the sources (0-based, over all objects in order).

    Frames of a segmentation lie in the order of their positions in space, so only their references tell which is which.
    """
    places = {}
    for place, group in enumerate(segmentation.PerFrameFunctionalGroupsSequence, 1):
        source = group.DerivationImageSequence[0].SourceImageSequence[0]
        places[str(source.ReferencedSOPInstanceUID), int(source.get("ReferencedFrameNumber") or 1)] = place
    frames = [(str(one.SOPInstanceUID), number) for one in sources for number in range(1, count_frames(one) + 1)]
    return {index: places[frame] for index, frame in enumerate(frames) if frame in places}


def _refer(segmentation: Dataset, place: int) -> hd.sr.ReferencedSegmentationFrame:
    """A reference to a frame of the segmentation, 1-based, and to what it derives from."""
    group = segmentation.PerFrameFunctionalGroupsSequence[place - 1]
    source = group.DerivationImageSequence[0].SourceImageSequence[0]
    frame = source.get("ReferencedFrameNumber")
    reference = hd.sr.ReferencedSegmentationFrame(
        sop_class_uid=segmentation.SOPClassUID,
        sop_instance_uid=segmentation.SOPInstanceUID,
        frame_number=place,
        segment_number=1,
        source_image=hd.sr.SourceImageForSegmentation(
            referenced_sop_class_uid=STILL,
            referenced_sop_instance_uid=source.ReferencedSOPInstanceUID,
            referenced_frame_numbers=None if frame is None else [int(frame)],
        ),
    )
    # The standard (PS3.3, C.17.3) allows a frame or a segment, and a frame of a binary segmentation has one segment.
    del reference[0].ReferencedSOPSequence[0].ReferencedSegmentNumber
    return reference
