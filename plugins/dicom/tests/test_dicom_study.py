"""Studies of tiny films whose bright squares are the findings: which frame has which area, in pictures, SEG and SR."""

import io
import tracemalloc
from collections.abc import Sequence
from typing import Any

import highdicom as hd
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from pydicom import dcmread, uid
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.encaps import encapsulate

from fovea.api.image import Times
from fovea.api.mask import Component, SegmentIn, SegmentOut
from fovea.errors import Cancelled, UnsupportedMedia
from fovea_dicom import study
from fovea_dicom.bodies import number_files
from fovea_dicom.schemas import SeriesOut, StudyOptions
from fovea_dicom.study import DETECTOR_NOTE, TEXT_NOTE, StudySegmenter
from shared.registry import CallContext
from shared.vision.decode import decode
from shared.vision.draw import encode
from shared.vision.limits import DEFAULT_BOUNDS, DecodeBounds
from shared.vision.mask_regions import find_regions

H, W = 24, 36
SERIES = uid.generate_uid()


def picture(*squares: tuple[int, int, int]) -> NDArray[np.uint8]:
    found = np.full((H, W, 3), 20, np.uint8)
    for x, y, side in squares:
        found[y : y + side, x : x + side] = 250
    return found


def film(*pictures: NDArray[np.uint8], **facts: Any) -> FileDataset:
    """An object of colour frames without a place in space; one frame is a single-frame object."""
    meta, is_film = FileMetaDataset(), len(pictures) > 1
    kinds = uid.SecondaryCaptureImageStorage, uid.MultiFrameTrueColorSecondaryCaptureImageStorage
    meta.MediaStorageSOPClassUID = kinds[is_film]
    meta.MediaStorageSOPInstanceUID, meta.TransferSyntaxUID = uid.generate_uid(), uid.ExplicitVRLittleEndian
    one = FileDataset("", {}, file_meta=meta, preamble=bytes(128))
    one.SOPClassUID, one.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    one.StudyInstanceUID, one.SeriesInstanceUID, one.Modality, one.InstanceNumber = "1.2.3", SERIES, "ES", 1
    one.Rows, one.Columns = pictures[0].shape[:2]
    one.SamplesPerPixel, one.PhotometricInterpretation, one.PlanarConfiguration = 3, "RGB", 0
    one.BitsAllocated, one.BitsStored, one.HighBit, one.PixelRepresentation = 8, 8, 7, 0
    one.PixelData, one.BurnedInAnnotation = np.stack(pictures).tobytes(), "NO"
    if is_film:
        one.NumberOfFrames = len(pictures)
    one.StudyDate, one.StudyTime, one.AccessionNumber, one.StudyID = "20260102", "120000", "", ""
    for name, value in facts.items():
        setattr(one, name, value)
    return one


def holding(**values: Any) -> Dataset:
    found = Dataset()
    for name, value in values.items():
        setattr(found, name, value)
    return found


def to_file(one: FileDataset) -> bytes:
    out = io.BytesIO()
    one.save_as(out, enforce_file_format=True)
    return out.getvalue()


class Bright:
    """A model that finds what is bright, and remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[SegmentIn] = []

    async def __call__(self, request: SegmentIn) -> SegmentOut:
        self.asked.append(request)
        mask = decode(request.image, DEFAULT_BOUNDS).pixels[..., 0] > 128
        regions, _ = find_regions(mask)
        parts = [
            Component(box=(0, 0, 1, 1), area=one.area, centre=(0, 0), probability=round(0.5 + one.area / 100, 2))
            for one in regions
        ]
        area, height, width = int(mask.sum()), *mask.shape
        return SegmentOut(
            model="bright", version="1", engine="torch", width=width, height=height, empty=not area, area=area,
            area_percent=0.0, max_probability=0.75, mean_probability=round(0.5 + area / 100, 2), components=parts[:1],
            component_count=len(parts),  # of many components an answer lists the largest only
            mask=encode(mask.astype(np.uint8) * 255), times=Times.model_construct(), warnings=[f"{area} pixels"],
        )  # fmt: skip


async def segment(*objects: FileDataset | bytes, model=None, label="polyp", **options: Any):
    files = number_files(one if isinstance(one, bytes) else to_file(one) for one in objects)
    segmenter = StudySegmenter(model or Bright(), "bright", "7", DEFAULT_BOUNDS, label)
    return await segmenter.segment(files, StudyOptions(**options), CallContext())


def read_report(series: SeriesOut) -> list[dict[str, float]]:
    groups = hd.sr.srread(io.BytesIO(series.report)).content.get_planar_roi_measurement_groups()
    return [{one.name.meaning: one.value for one in group.get_measurements()} for group in groups]


def read_masks(series: SeriesOut) -> dict[tuple[str, int], NDArray[np.bool_]]:
    """Masks of a segmentation by what they derive from: object and frame."""
    found = dcmread(io.BytesIO(series.segmentation))
    masks = {}
    for group, mask in zip(found.PerFrameFunctionalGroupsSequence, found.pixel_array.reshape(-1, H, W), strict=True):
        source = group.DerivationImageSequence[0].SourceImageSequence[0]
        masks[source.ReferencedSOPInstanceUID, int(source.get("ReferencedFrameNumber", 1))] = mask.astype(bool)
    return masks


def check_references(series: SeriesOut) -> None:
    """Each group of a report points to another frame of its segmentation, and to what that frame derives from."""
    seg = dcmread(io.BytesIO(series.segmentation))
    groups = hd.sr.srread(io.BytesIO(series.report)).content.get_planar_roi_measurement_groups()
    frames = [group.referenced_segmentation_frame for group in groups]
    numbers = [int(np.atleast_1d(frame.referenced_frame_numbers)[0]) for frame in frames]
    assert sorted(numbers) == list(range(1, int(seg.NumberOfFrames) + 1))
    for number, frame in zip(numbers, frames, strict=True):
        assert frame.referenced_sop_instance_uid == seg.SOPInstanceUID
        assert frame.referenced_sop_class_uid == seg.SOPClassUID
        assert frame.referenced_segment_numbers is None  # the standard allows a frame or a segment
        source = seg.PerFrameFunctionalGroupsSequence[number - 1].DerivationImageSequence[0].SourceImageSequence[0]
        named = frame.source_image_for_segmentation
        assert named.referenced_sop_instance_uid == source.ReferencedSOPInstanceUID
        assert named.referenced_sop_class_uid == source.ReferencedSOPClassUID
        place = source.get("ReferencedFrameNumber")
        assert (named.referenced_frame_numbers or None) == (place and [int(place)])


async def test_every_frame_of_a_film_has_its_own_area_in_answer_segmentation_and_report():
    frames = (picture((2, 2, 4)), picture(), picture((5, 5, 6), (20, 10, 3)), picture((1, 1, 2)), picture((9, 9, 5)))
    one = film(*frames, PixelSpacing=[0.5, 0.2])
    found = await segment(one)
    (series,) = found.series
    (instance,) = series.instances
    assert (found.model, found.version, found.frames, found.skipped) == ("bright", "7", 5, [])
    assert (series.series, series.study, series.warnings, series.strip) == (SERIES, "1.2.3", [], None)
    told = [(one.frame, one.area, one.area_mm2, one.component_count, one.empty) for one in instance.frames]
    first = [(1, 16, 1.6, 1, False), (2, 0, 0.0, 0, True), (3, 45, 4.5, 2, False), (4, 4, 0.4, 1, False)]
    assert told == [*first, (5, 25, 2.5, 1, False)]
    assert [frame.warnings for frame in instance.frames][:2] == [["16 pixels"], ["0 pixels"]]
    assert {frame.max_probability for frame in instance.frames} == {0.75}
    assert (instance.instance, instance.modality, instance.rows, instance.columns) == (one.SOPInstanceUID, "ES", H, W)
    size = instance.pixel_size
    assert (size.row_mm, size.column_mm, size.source) == (0.5, 0.2, "PixelSpacing")
    masks = read_masks(series)
    areas = {(one.SOPInstanceUID, frame): area for frame, area in ((1, 16), (3, 45), (4, 4), (5, 25))}
    assert {key: int(mask.sum()) for key, mask in masks.items()} == areas
    assert (masks[one.SOPInstanceUID, 3] == (frames[2][..., 0] > 128)).all()
    check_references(series)
    made_by = dcmread(io.BytesIO(series.report)).to_json()
    assert (made_by.count('["bright"]'), made_by.count('["7"]')) == (6, 4)  # observer, its model, each frame
    rows = read_report(series)
    assert [(one["Area"], one["Components of the mask"]) for one in rows] == [(1.6, 1), (4.5, 2), (0.4, 1), (2.5, 1)]
    means = [frame.mean_probability for frame in instance.frames if not frame.empty]
    assert [numbers["Mean probability of the mask"] for numbers in rows] == means == [0.66, 0.95, 0.54, 0.75]
    one.PerFrameFunctionalGroupsSequence = [holding(PixelMeasuresSequence=[holding(PixelSpacing=[2, 2])])]
    (series,) = (await segment(one)).series
    assert [frame.area_mm2 for frame in series.instances[0].frames] == [64, 0, 4.5, 0.4, 2.5]


async def test_single_frames_of_a_series_are_one_segmentation_in_the_order_of_their_numbers():
    sides = {3: 3, 10: 5, 1: 2, "": 6}
    objects = [film(picture((2, 2, side)), InstanceNumber=number) for number, side in sides.items()]
    (series,) = (await segment(*objects)).series
    assert [one.frames[0].area for one in series.instances] == [36, 4, 9, 25]
    assert [one.frames[0].area_mm2 for one in series.instances] == [None] * 4
    assert series.warnings == ["The objects do not state their pixels' size, so areas are in pixels only."]
    check_references(series)
    areas = [int(mask.sum()) for one in objects for mask in [read_masks(series)[one.SOPInstanceUID, 1]]]
    assert (areas, [numbers["Area"] for numbers in read_report(series)]) == ([9, 25, 4, 36], [36, 4, 9, 25])
    group = hd.sr.srread(io.BytesIO(series.report)).content.get_planar_roi_measurement_groups()[0]
    assert [one.unit.value for one in group.get_measurements()] == ["{pixels}", "1", "1"]
    unit = group.get_measurements()[0].unit
    assert (unit.scheme_designator, unit.meaning) == ("UCUM", "pixels")
    names = [(one.name.value, one.name.scheme_designator) for one in group.get_measurements()]
    assert names[1:] == [("mean-probability", "99FOVEA"), ("components", "99FOVEA")]


async def test_films_other_series_other_studies_and_other_sizes_are_apart():
    found = await segment(
        film(picture(), SeriesInstanceUID="9.1"), film(picture(), picture()), film(picture(), picture()),
        film(picture()), film(picture()), film(picture()[:, :30].copy()),
        film(picture(), SeriesInstanceUID="9.1", StudyInstanceUID="9.2"),
    )  # fmt: skip
    assert [one.series for one in found.series] == [SERIES] * 4 + ["9.1"] * 2
    assert sorted(sum(len(one.frames) for one in series.instances) for series in found.series) == [1, 1, 1, 2, 2, 2]
    assert found.frames == 9
    assert {series.segmentation for series in found.series} == {series.report for series in found.series} == {None}


async def test_what_is_no_picture_is_skipped_and_says_why():
    report = film(picture())
    del report.PixelData
    report.Modality, report.SOPClassUID = "SR", uid.ComprehensiveSRStorage
    nothing = film(picture())
    del nothing.PixelData, nothing.Modality
    broken = film(picture(), SOPInstanceUID="4.5.6")
    broken.PixelData = broken.PixelData[:100]
    mpeg = film(picture(), NumberOfFrames=9, PixelData=encapsulate([bytes(200)]))
    mpeg.file_meta.TransferSyntaxUID = uid.MPEG4HP41
    mpeg["PixelData"].VR = "OB"
    bare = film(picture())
    del bare.SamplesPerPixel
    cut = to_file(mpeg)[:-50]
    found = await segment(b"no", film(picture((1, 1, 3))), report, nothing, broken, mpeg, cut, bare)
    told = {
        "File 1": "The file can't be read as DICOM.", "File 3": "SR without a picture.",
        "File 4": "The picture has no pixels; the file may be cut short.", "File 5": "The file may be damaged.",
        "File 6": "Films in MPEG are not read. Export their frames, or the film as JPEG.",
        "File 7": "The file ends early, or is empty.", "File 8": "Its header lacks SamplesPerPixel.",
    }  # fmt: skip
    reasons = dict(one.split(": ", 1) for one in found.skipped)
    assert {name: text[-len(told[name]) :] for name, text in reasons.items()} == told
    assert found.frames == 1
    assert len(found.series) == 1
    many = " ".join(f"File {n}: SR without a picture." for n in range(1, 21)) + " 3 more files."
    for files, hint in (([report], "File 1: SR without a picture."), ([], None), (23 * [report], many)):
        with pytest.raises(UnsupportedMedia, match="There is no picture that can be read") as refused:
            await segment(*files)
        assert (refused.value.hint, refused.value.field) == (hint, "files")


async def test_options_go_to_the_model_and_choose_the_forms():
    model, frames = Bright(), [picture((x, 2, 3)) for x in range(5)]
    options = {"threshold": 0.3, "min_area": 7, "keep_largest": True, "min_peak": 0.8, "normalise": "minmax"}
    (series,) = (await segment(film(*frames), model=model, include="strip", **options)).series
    assert (series.segmentation, series.report) == (None, None)
    strip = Image.open(io.BytesIO(series.strip))
    assert (strip.format, strip.size) == ("JPEG", (5 * round(W * 160 / H), 160))
    assert [one.model_dump(include={"model", *options}) for one in model.asked] == [{"model": "bright", **options}] * 5
    assert {one.include for one in model.asked} == {("mask",)}
    assert np.array_equal([decode(one.image, DEFAULT_BOUNDS).pixels for one in model.asked], frames)
    for include, made in (("segmentation", [True, False, False]), ("report,strip", [False, True, True])):
        (series,) = (await segment(film(*frames), include=include)).series
        assert [form is not None for form in (series.segmentation, series.report, series.strip)] == made
    (series,) = (await segment(*[film(picture(), InstanceNumber=n) for n in range(26)], include="strip")).series
    assert Image.open(io.BytesIO(series.strip)).width == 24 * 240, "the first frames only"


@pytest.mark.parametrize(("window", "area"), [(None, 0), ("20,3", 9)])
async def test_grey_frames_are_seen_through_the_window_that_is_asked_for(window, area):
    pixels = np.full((H, W), 18, np.uint8)
    pixels[3:6, 3:6] = 22
    facts = {"SamplesPerPixel": 1, "PhotometricInterpretation": "MONOCHROME2"}
    one = film(pixels, **facts, WindowCenter="128", WindowWidth="256")
    del one.PlanarConfiguration
    (series,) = (await segment(one, window=window)).series
    assert series.instances[0].frames[0].area == area


async def test_objects_that_no_segmentation_can_repeat_are_answered_without_one_and_warnings_are_of_text_and_size():
    (series,) = (await segment(film(picture(), BurnedInAnnotation="YES", ImagerPixelSpacing=[0.2, 0.2]))).series
    assert (series.warnings, series.instances[0].burnt_in_text.declared) == ([TEXT_NOTE, DETECTOR_NOTE], "YES")
    assert series.instances[0].burnt_in_text.suspected
    odd = film(picture((1, 1, 3)), PixelSpacing=[1, 1])
    del odd.SOPClassUID
    (series,) = (await segment(odd)).series
    assert (series.instances[0].frames[0].area, series.segmentation, series.report) == (9, None, None)
    assert series.warnings == ["The objects lack what a DICOM segmentation must repeat of them (AttributeError)."]


@pytest.mark.parametrize("sides", [(3,), (3, 4, 2)], ids=["still", "film"])
@pytest.mark.parametrize("kind", [
    uid.UltrasoundMultiFrameImageStorage, uid.UltrasoundImageStorage, uid.VideoEndoscopicImageStorage,
    "1.2.840.10008.5.1.4.1.1.6", "1.2.840.113619.4.2",
], ids=["films", "stills", "video", "retired", "private"])  # fmt: skip
async def test_stills_and_films_of_any_class_are_segmented_and_referred_to_by_it(kind, sides):
    one = film(*[picture((2, 2, side)) for side in sides], SOPClassUID=kind, NumberOfFrames=len(sides))
    (series,) = (await segment(one)).series
    areas = {(one.SOPInstanceUID, number): side**2 for number, side in enumerate(sides, 1)}
    check_references(series)
    assert [numbers["Area"] for numbers in read_report(series)] == [*areas.values()]
    assert {key: int(mask.sum()) for key, mask in read_masks(series).items()} == areas
    seg, report = (dcmread(io.BytesIO(data)) for data in (series.segmentation, series.report))
    (named,) = seg.ReferencedSeriesSequence[0].ReferencedInstanceSequence
    assert named.ReferencedSOPClassUID == kind
    assert f'"{uid.SecondaryCaptureImageStorage}"' not in seg.to_json() + report.to_json()
    hd.seg.segread(io.BytesIO(series.segmentation))


async def test_patients_are_apart_where_series_have_no_ids():
    objects = [film(picture((2, 2, side)), PatientID=f"patient {side}") for side in (2, 3)]
    for one in objects:
        del one.StudyInstanceUID, one.SeriesInstanceUID
    found = await segment(*objects)
    made = [dcmread(io.BytesIO(one.segmentation)) for one in found.series]
    areas = {seg.PatientID: read_report(one)[0]["Area"] for seg, one in zip(made, found.series, strict=True)}
    assert areas == {"patient 2": 4, "patient 3": 9}
    named = [(one.StudyInstanceUID, one.ReferencedSeriesSequence[0].SeriesInstanceUID) for one in made]
    assert len({*named}) == 2
    assert named == [(one.study, one.series) for one in found.series]
    assert named == [(one.study, one.series) for one in (await segment(*objects)).series], "the same each time"


NAMES = (
    ("ISO_IR 100", "Müller^Jürgen"), ("ISO_IR 192", "山田^太郎"), ("", "Plain^Name"), ("ISO 2022 IR 100", "Müller"),
    (["", "ISO 2022 IR 87"], "Yamada^Tarou=山田^太郎=やまだ^たろう"),
    (["", "ISO 2022 IR 149"], "Hong^Gildong=洪^吉洞=홍^길동"),
)  # fmt: skip


@pytest.mark.parametrize(("facts", "repeated"), [
    *(({"PatientName": name, "SpecificCharacterSet": characters}, name) for characters, name in NAMES),
    ({"PatientSex": "X"}, ""), ({"PatientSex": "F"}, "F"), ({"StudyDate": "20260230"}, ""),
    ({"StudyTime": "2500"}, ""), ({"AccessionNumber": 17 * "7"}, ""), ({"PatientName": "A\\B"}, ""),
    ({"PatientBirthDate": "00000000"}, ""), ({"PatientBirthDate": "19700229"}, ""), ({"StudyTime": "0815"}, "0815"),
])  # fmt: skip
async def test_names_are_kept_in_any_character_set_and_what_no_derived_object_may_repeat_left_out(facts, repeated):
    (series,) = (await segment(film(picture((2, 2, 4)), PatientID="7", **facts))).series
    made = [dcmread(io.BytesIO(data)) for data in (series.segmentation, series.report)]
    assert [one.get(next(iter(facts))) for one in made] == [repeated, repeated]


async def test_of_an_object_that_is_there_twice_the_first_counts_and_deflated_files_share_some_room(monkeypatch):
    one, other = film(picture((2, 2, 3)), picture((2, 2, 4))), film(picture((2, 2, 5)))
    twin = film(picture((9, 9, 3)), SOPInstanceUID=one.SOPInstanceUID)
    found = await segment(one, other, one, twin)
    told = ["File 3: the same object as File 1.", "File 4: other pixels under the UID of File 1."]
    assert found.skipped == told
    assert sorted(len(read_report(series)) for series in found.series) == [1, 2]
    objects = [film(picture((2, 2, side)), PatientComments="." * 9000) for side in (3, 4)]
    for one in objects:
        one.file_meta.TransferSyntaxUID = uid.DeflatedExplicitVRLittleEndian
    assert len(to_file(objects[0])) < 2000
    monkeypatch.setattr(study, "MAX_UNPACKED_BYTES", 20_000)
    found = await segment(*objects)
    assert [one.instances[0].frames[0].area for one in found.series] == [9]
    assert found.skipped == ["File 2: It inflates to more than the 0 MB that are left."]


@pytest.mark.parametrize(("facts", "told"), [
    ({"VOILUTSequence": []}, None), ({"RescaleSlope": None}, None), ({"RescaleIntercept": None}, None),
    ({"WindowCenter": "nan", "WindowWidth": "9"}, None), ({"Modality": ["CT", "MR"]}, None),
    ({"VOILUTSequence": [Dataset()]}, "can't be decoded"), ({"Columns": None}, "how large"), ({}, "how large"),
])  # fmt: skip
async def test_one_odd_object_does_not_stop_the_others(facts, told):
    pixels = picture((2, 2, 4))[..., 0]
    odd = film(pixels, SamplesPerPixel=1, PhotometricInterpretation="MONOCHROME2", RescaleSlope=1, RescaleIntercept=0)
    del odd.PlanarConfiguration
    for name, value in facts.items():
        setattr(odd, name, value)
    if not facts:
        del odd.Columns
    found = await segment(film(picture((2, 2, 3))), odd)
    assert [text.partition(":")[0] for text in found.skipped] == (["File 2"] if told else [])
    assert told is None or told in found.skipped[0]
    areas = sorted(frame.area for series in found.series for one in series.instances for frame in one.frames)
    assert areas == ([9] if told else [9, 16])


def placed(side: int, where: Sequence[float], turn: Sequence[float] = (1, 0, 0, 0, 1, 0), mm=0.5) -> FileDataset:
    facts = {"FrameOfReferenceUID": "1.2.9", "PositionReferenceIndicator": "", "SliceThickness": 5.0}
    facts |= {"ImagePositionPatient": list(where), "ImageOrientationPatient": list(turn), "PixelSpacing": [mm, mm]}
    return film(picture((2, 2, side)), InstanceNumber=side, **facts)


def ultrasound(side: int, centimetres: float) -> FileDataset:
    units = {"PhysicalUnitsXDirection": 3, "PhysicalUnitsYDirection": 3}
    seen = holding(PhysicalDeltaX=centimetres, PhysicalDeltaY=centimetres, **units)
    return film(picture((2, 2, side)), InstanceNumber=side, SequenceOfUltrasoundRegions=[seen])


@pytest.mark.parametrize(("objects", "areas", "is_placed", "size"), [
    ([placed(2, (0, 0, 0)), placed(4, (0, 0, 5))], [1, 4], True, [0.5, 0.5]),
    ([placed(2, (0, 0, 0)), placed(4, (0, 0, 0))], [1, 4], False, [0.5, 0.5]),
    ([placed(2, (0, 0, 0)), placed(4, (0, 0, 5), (0, 1, 0, 0, 0, -1))], [1, 4], False, [0.5, 0.5]),
    ([placed(2, (0, 0, 0)), placed(4, (0, 0, 5), mm=1)], [1, 16], False, None),
    ([ultrasound(2, 0.01), ultrasound(4, 0.02)], [0.04, 0.64], False, None),
], ids=["stack", "same place", "crossing planes", "other size", "ultrasound of two depths"])  # fmt: skip
async def test_a_segmentation_states_no_geometry_that_not_all_its_frames_have(objects, areas, is_placed, size):
    (series,) = (await segment(*objects)).series
    assert [numbers["Area"] for numbers in read_report(series)] == pytest.approx(areas)
    check_references(series)
    seg = dcmread(io.BytesIO(series.segmentation))
    shared = seg.SharedFunctionalGroupsSequence[0]
    assert ("FrameOfReferenceUID" in seg, "PlaneOrientationSequence" in shared) == (is_placed, is_placed)
    stated = shared.get("PixelMeasuresSequence")
    assert (stated and list(stated[0].PixelSpacing)) == size


async def test_a_long_film_holds_a_bit_of_each_pixel_of_its_masks():
    held, model = list[int](), Bright()

    async def predict(request: SegmentIn) -> SegmentOut:
        held.append(tracemalloc.get_traced_memory()[0])
        model.asked.clear()
        return await model(request)

    one = film(*[np.kron(picture((5, 5, 6)), np.ones((15, 15, 1), np.uint8))] * 40)
    one.compress(uid.RLELossless)
    tracemalloc.start()
    await segment(one, model=predict, include="masks")
    tracemalloc.stop()
    assert held[32] - held[8] < 24 * 15 * H * 15 * W / 2


async def test_progress_is_told_and_a_cancelled_run_stops():
    told: list[tuple[float, str | None]] = []
    run = CallContext(report=lambda *news: told.append(news))
    files = number_files(to_file(film(*[picture()] * number, InstanceNumber=number)) for number in (1, 6))
    await StudySegmenter(Bright(), "bright", "7", DEFAULT_BOUNDS).segment(files, StudyOptions(), run)
    assert told == [(0.0, "0 of 7 frames"), (1 / 7, "1 of 7 frames"), (5 / 7, "5 of 7 frames")]
    with pytest.raises(UnsupportedMedia):
        await StudySegmenter(Bright(), "bright", "7", DecodeBounds(pixels=100)).segment(files, StudyOptions(), run)
    told.clear()
    run = CallContext(report=lambda *news: [told.append(news), run.cancel()])
    with pytest.raises(Cancelled):
        await StudySegmenter(Bright(), "bright", "7", DEFAULT_BOUNDS).segment(files, StudyOptions(), run)
    assert told == [(0.0, "0 of 7 frames")]


@pytest.mark.parametrize("model", ["bright", 8 * "long-name-"])
async def test_derived_objects_name_what_made_them(model):
    segmenter, name = StudySegmenter(Bright(), model, "7", DEFAULT_BOUNDS, "ulcer"), model[:50]
    files = number_files([to_file(film(picture((2, 2, 4))))])
    (series,) = (await segmenter.segment(files, StudyOptions(), CallContext())).series
    seg, report = (dcmread(io.BytesIO(data)) for data in (series.segmentation, series.report))
    assert (seg.Manufacturer, seg.ManufacturerModelName, seg.SoftwareVersions) == ("Fovea", name, "7")
    assert (seg.SeriesNumber, seg.InstanceNumber, seg.SeriesDescription) == (9001, 1, f"ulcer, {name}")
    assert (seg.ContentLabel, seg.DeviceSerialNumber, seg.SegmentationType) == ("SEGMENTATION", "0", "BINARY")
    (segment_,) = seg.SegmentSequence
    assert (segment_.SegmentNumber, segment_.SegmentLabel, segment_.TrackingID) == (1, "ulcer", "ulcer 1")
    assert segment_.SegmentAlgorithmType == "AUTOMATIC"
    assert segment_.SegmentedPropertyTypeCodeSequence[0].CodeMeaning == "Lesion"
    assert segment_.SegmentedPropertyCategoryCodeSequence[0].CodeMeaning == "Morphologically Abnormal Structure"
    (algorithm,) = segment_.SegmentationAlgorithmIdentificationSequence
    assert (algorithm.AlgorithmName, algorithm.AlgorithmVersion, algorithm.AlgorithmSource) == (name, "7", "Fovea")
    assert algorithm.AlgorithmFamilyCodeSequence[0].CodeMeaning == "Artificial Intelligence"
    assert (report.SeriesNumber, report.InstanceNumber, report.SeriesDescription) == (9002, 1, f"Areas, {name}")
    assert (report.Manufacturer, report.CompletionFlag) == ("Fovea", "COMPLETE")
    assert report.ConceptNameCodeSequence[0].CodeMeaning == "Imaging Measurement Report"
    parts = ("finding 1", name, "Lesion", "Device Observer Manufacturer", "mean-probability", "components")
    assert [part for part in (*parts, "Algorithm Name", "Algorithm Version") if part not in str(report)] == []
    assert report.file_meta.TransferSyntaxUID == uid.ExplicitVRLittleEndian
    ids = {str(one.get(name)) for one in (seg, report) for name in ("SeriesInstanceUID", "SOPInstanceUID")}
    assert len(ids - {"None", "", SERIES}) == 4
    evidence = report.CurrentRequestedProcedureEvidenceSequence[0].ReferencedSeriesSequence
    named = {one.ReferencedSOPInstanceUID for each in evidence for one in each.ReferencedSOPSequence}
    assert seg.SOPInstanceUID in named
    assert len(named) == 2
    (series,) = (await segment(film(picture((2, 2, 4))))).series
    kind = dcmread(io.BytesIO(series.segmentation)).SegmentSequence[0].SegmentedPropertyTypeCodeSequence[0]
    assert (kind.CodeValue, kind.CodingSchemeDesignator, kind.CodeMeaning) == ("41329004", "SCT", "Polyp")
