"""Corrected masks become a new version: edited PNGs, or what a viewer saved, on films and on single frames."""

import io
import shutil

import highdicom as hd
import numpy as np
import pytest
from PIL import Image
from pydicom import dcmread

from fovea.errors import InvalidOption, Malformed
from fovea_dicom import corrections
from fovea_dicom.bodies import NamedFile
from fovea_dicom.corrections import correct_segmentation
from fovea_dicom.schemas import SeriesOut
from plugins.dicom.tests.test_dicom_objects import check_with_dciodvfy, make_series, raw
from plugins.dicom.tests.test_dicom_study import H, W, film, picture, read_masks, read_report, segment, to_file
from shared.vision.draw import encode
from shared.vision.limits import DEFAULT_BOUNDS


def png(mask: np.ndarray, name: str) -> NamedFile:
    return NamedFile(name, encode(np.asarray(mask, np.uint8) * 255))


def square(x: int, y: int, side: int) -> np.ndarray:
    mask = np.zeros((H, W), bool)
    mask[y : y + side, x : x + side] = True
    return mask


async def make_film() -> tuple[NamedFile, SeriesOut]:
    """A film whose frames have squares of 2, no and 4 pixels side, and what was found in it."""
    one = film(picture((2, 2, 2)), picture(), picture((9, 9, 4)), PixelSpacing=[0.5, 0.5])
    (series,) = (await segment(one, include=("segmentation", "report", "masks"))).series
    return NamedFile("film.dcm", to_file(one)), series


async def test_edited_masks_become_a_new_version_in_the_same_series(tmp_path):
    source, series = await make_film()
    (instance,) = series.instances
    shown = [np.asarray(Image.open(io.BytesIO(frame.mask))) > 0 for frame in instance.frames]
    assert [int(mask.sum()) for mask in shown] == [4, 0, 16]
    uid = instance.instance
    edited = [png(square(20, 3, 5), f"{uid}.2.png"), png(np.zeros((H, W)), f"m/{uid}.1.png")]
    found = correct_segmentation([source], series.segmentation, edited, DEFAULT_BOUNDS, "Doe")
    before, after = (dcmread(io.BytesIO(data)) for data in (series.segmentation, found.segmentation))
    assert (found.version, found.area, found.frames) == (2, 25 + 16, 2)
    assert found.changed == [f"{uid}.1", f"{uid}.2"]
    assert (after.SeriesInstanceUID, after.InstanceNumber) == (before.SeriesInstanceUID, 2)
    assert after.SOPInstanceUID == found.instance != before.SOPInstanceUID == found.corrects
    assert after.ReferencedInstanceSequence[0].ReferencedSOPInstanceUID == before.SOPInstanceUID
    assert after.SegmentSequence[0].TrackingUID == before.SegmentSequence[0].TrackingUID
    assert after.SegmentSequence[0].SegmentAlgorithmType == "SEMIAUTOMATIC"
    assert (str(after.ContentCreatorName), after.ContentDescription) == ("Doe", "Version 2, corrected")
    again = SeriesOut.model_construct(segmentation=found.segmentation, report=found.report)
    masks = read_masks(again)
    assert set(masks) == {(uid, 2), (uid, 3)}
    assert (masks[uid, 2] == square(20, 3, 5)).all()
    assert [row["Area"] for row in read_report(again)] == [25 * 0.25, 16 * 0.25]
    hd.seg.segread(io.BytesIO(found.segmentation))
    if shutil.which("dciodvfy"):
        check_with_dciodvfy(tmp_path, found.segmentation, found.report)
    after.ManufacturerModelName = after.SegmentSequence[0].SegmentLabel = "another vendor's " * 3
    third = correct_segmentation([source], corrections.to_bytes(after), edited[:1], DEFAULT_BOUNDS)
    assert (third.version, third.changed) == (3, [])


async def test_what_a_viewer_saved_replaces_all_masks_also_of_single_slices(tmp_path):
    slices = make_series([-70, -75, -60])
    files = [NamedFile(f"{n}.dcm", to_file(one)) for n, one in enumerate(slices)]
    sources = corrections.fill_identity([dcmread(io.BytesIO(file.data)) for file in files])
    masks = np.zeros((3, slices[0].Rows, slices[0].Columns), bool)
    masks[0, 1:3, 4:9] = masks[2, 5:7, 5:7] = True
    first = corrections.build_segmentation(sources, masks, label="polyp", model="toy", version="1")
    viewed = np.roll(masks, 3, axis=1)
    viewed[1, 7, 7], viewed[2] = True, False
    saved = corrections.build_segmentation(sources, viewed, label="x", model="viewer", version="9")
    given = NamedFile("edited.dcm", corrections.to_bytes(saved))
    found = correct_segmentation(files, corrections.to_bytes(first), [given], DEFAULT_BOUNDS)
    back = corrections.read_masks(dcmread(io.BytesIO(found.segmentation)))
    assert {uid for uid, _ in back} == {str(one.SOPInstanceUID) for one in slices[:2]}
    assert (back[str(slices[0].SOPInstanceUID), 1] == viewed[0]).all()
    assert (found.version, len(found.changed), found.area) == (2, 3, 11)
    assert dcmread(io.BytesIO(found.segmentation)).ManufacturerModelName == "toy"
    if shutil.which("dciodvfy"):
        check_with_dciodvfy(tmp_path, found.segmentation, found.report)


async def test_of_fractions_that_a_program_saved_those_from_a_half_are_the_mask():
    source, series = await make_film()
    saved = dcmread(io.BytesIO(series.segmentation))
    shares = np.stack([square(3, 3, 9) * 10 + square(4, 4, 3) * 90, square(1, 1, 4) * 50 + square(9, 9, 5) * 49])
    saved.SegmentationType, saved.SegmentationFractionalType = "FRACTIONAL", "PROBABILITY"
    saved.MaximumFractionalValue, saved.BitsAllocated, saved.BitsStored, saved.HighBit = 100, 8, 8, 7
    saved.PixelData = shares.astype(np.uint8).tobytes()
    given = [NamedFile("saved.dcm", corrections.to_bytes(saved))]
    found = correct_segmentation([source], series.segmentation, given, DEFAULT_BOUNDS)
    masks = read_masks(SeriesOut.model_construct(segmentation=found.segmentation)).values()
    assert [int(mask.sum()) for mask in masks] == [9, 16]


async def test_parts_that_do_not_belong_together_are_named():
    source, series = await make_film()
    uid = series.instances[0].instance
    good = png(square(1, 1, 2), f"{uid}.1.png")

    def refuse(told: str, kind: type[Exception], *, files=(source,), seg=series.segmentation, masks=(good,)) -> None:
        with pytest.raises(kind, match=told):
            correct_segmentation(list(files), seg, list(masks), DEFAULT_BOUNDS)

    refuse("not a DICOM segmentation", InvalidOption, seg=raw("CT_small.dcm"))
    refuse("can't be read as DICOM", Malformed, seg=b"x")
    refuse(f"picture {uid} .* is missing", InvalidOption, files=[NamedFile("ct", raw("CT_small.dcm"))])
    refuse("no corrected mask", InvalidOption, masks=[])
    refuse("x.png is not named", InvalidOption, masks=[good._replace(name="x.png")])
    refuse("no frame 4", InvalidOption, masks=[good._replace(name=f"{uid}.4.png")])
    refuse("is 8 × 9; its picture is 36 × 24", InvalidOption, masks=[png(np.ones((9, 8)), f"{uid}.1.png")])
    refuse("Nothing is left", InvalidOption, masks=[png(np.zeros((H, W)), f"{uid}.{frame}.png") for frame in (1, 3)])
    broken = dcmread(io.BytesIO(series.segmentation))
    del broken.SeriesInstanceUID
    refuse("lacks SeriesInstanceUID", Malformed, seg=corrections.to_bytes(broken))
    broken = dcmread(io.BytesIO(series.segmentation))
    for group in broken.PerFrameFunctionalGroupsSequence:
        del group.DerivationImageSequence
    refuse("does not say which frames", InvalidOption, seg=corrections.to_bytes(broken))
    del broken.PerFrameFunctionalGroupsSequence
    refuse("masks can't be read", Malformed, seg=corrections.to_bytes(broken))


async def test_objects_without_an_id_have_masks_of_different_names_that_are_taken_back():
    stills = [film(picture((2, 2, side)), SOPInstanceUID="", SeriesInstanceUID="") for side in (3, 4)]
    (series,) = (await segment(*stills)).series
    first, second = (one.instance for one in series.instances)
    assert first != second
    back = corrections.read_masks(dcmread(io.BytesIO(series.segmentation)))
    assert [int(back[uid, 1].sum()) for uid in (first, second)] == [9, 16]
    sources = [NamedFile(f"{place}.dcm", to_file(one)) for place, one in enumerate(stills)]
    edited = png(square(3, 3, 5), f"{second}.1.png")
    assert correct_segmentation(sources, series.segmentation, [edited], DEFAULT_BOUNDS).changed == [f"{second}.1"]


async def test_what_an_eraser_left_transparent_is_no_mask_and_any_corrector_is_named():
    source, series = await make_film()
    uid = series.instances[0].instance
    kept = square(3, 3, 5)
    layers = np.full((H, W, 4), 255, np.uint8)
    layers[~kept] = 0
    edited = NamedFile(f"{uid}.1.PNG", encode(layers))
    found = correct_segmentation([source], series.segmentation, [edited], DEFAULT_BOUNDS, "山田^太郎")
    after = dcmread(io.BytesIO(found.segmentation))
    assert (corrections.read_masks(after)[uid, 1] == kept).all()
    assert after.ContentCreatorName == "山田^太郎"
