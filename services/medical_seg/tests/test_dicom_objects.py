"""DICOM objects read as viewers show them, and derived objects that point back to them. Files are pydicom's own."""

from __future__ import annotations

import copy
import io
import logging
import warnings
import zipfile
from functools import cache
from pathlib import Path
from typing import Any

import highdicom as hd
import numpy as np
import pytest
from PIL import Image, ImageDraw
from pydicom import dcmread
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset, FileDataset
from pydicom.uid import RLELossless, generate_uid

from services.medical_seg.dicom.bodies import build_related, parse_related, unpack_zip
from services.medical_seg.dicom.burnt_in import find_text_lines, inspect_text
from services.medical_seg.dicom.derived_objects import MaskFinding, build_report, build_segmentation, to_bytes
from services.medical_seg.dicom.frames import count_frames
from services.medical_seg.dicom.geometry import PixelSize, find_edges, find_pixel_size
from services.medical_seg.dicom.reading import has_pixels, read_frame, read_object
from services.medical_seg.dicom.windowing import GreyWindow, parse_window
from shared.errors import InvalidOption, Malformed, TooLarge, UnsupportedMedia
from shared.vision.decode import DecodeBounds


@cache
def raw(name: str) -> bytes:
    """A file that comes with pydicom or its data package."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = get_testdata_file(name, download=False)
    if found is None:
        pytest.skip(f"{name} is not installed: pip install pydicom-data")
    return Path(str(found)).read_bytes()


def load(name: str) -> FileDataset:
    return read_object(raw(name))


@pytest.mark.parametrize(
    ("coded", "plain"),
    [
        ("MR_small_RLE.dcm", "MR_small.dcm"),
        ("MR_small_jp2klossless.dcm", "MR_small.dcm"),
        ("MR_small_jpeg_ls_lossless.dcm", "MR_small.dcm"),
        ("MR_small_bigendian.dcm", "MR_small.dcm"),
        ("MR_small_implicit.dcm", "MR_small.dcm"),
        ("SC_rgb_rle.dcm", "SC_rgb.dcm"),
        ("emri_small_RLE.dcm", "emri_small.dcm"),
        ("OBXXXX1A_expb.dcm", "OBXXXX1A.dcm"),
    ],
)
def test_a_transfer_syntax_without_loss_changes_no_pixel(coded: str, plain: str) -> None:
    assert (read_frame(load(coded)) == read_frame(load(plain))).all()
    assert np.ptp(read_frame(load(plain))) > 50


@pytest.mark.parametrize(
    "name", ["SC_rgb_jpeg_dcmtk.dcm", "SC_rgb_dcmtk_+eb+cy+np.dcm", "SC_ybr_full_422_uncompressed.dcm"]
)
def test_colours_are_right_however_they_were_coded(name: str) -> None:
    assert np.abs(read_frame(load(name)).astype(int) - read_frame(load("SC_rgb.dcm"))).mean() < 3


def test_lossless_jpeg_and_twelve_bits_are_decoded() -> None:
    assert np.ptp(read_frame(load("JPGLosslessP14SV1_1s_1f_8b.dcm"))) > 100
    assert np.ptp(read_frame(load("JPGExtended.dcm"))) > 100


def test_frames_of_a_film_come_in_order_and_differ() -> None:
    film = load("examples_ybr_color.dcm")
    frames = [read_frame(film), read_frame(film, 29)]
    assert count_frames(film) == 30
    assert frames[0].shape == (240, 320, 3)
    assert (frames[0] != frames[1]).any()


def grey(values: Any, **more: Any) -> FileDataset:
    """A small object of these stored values."""
    stored = np.asarray(values, np.int16)
    found = copy.copy(load("CT_small.dcm"))
    found.Rows, found.Columns, found.PixelData = *stored.shape, stored.tobytes()
    for name in ("WindowCenter", "WindowWidth", "PixelPaddingValue"):
        if name in found:
            delattr(found, name)
    for name, value in {"RescaleSlope": 1, "RescaleIntercept": 0, **more}.items():
        setattr(found, name, value)
    return found


def test_a_window_is_applied_to_rescaled_values_as_the_standard_writes_it() -> None:
    one = grey([[0, 500], [1000, 2000]], RescaleSlope=2, RescaleIntercept=-1000, WindowCenter=0.5, WindowWidth=2001)
    assert read_frame(one)[..., 0].tolist() == [[0, 128], [255, 255]]
    assert read_frame(one, window=GreyWindow(1000.5, 2001))[..., 0].tolist() == [[0, 0], [128, 255]]
    exact = GreyWindow(1000, 2000, "LINEAR_EXACT").apply(np.asarray([0.0, 1000.0, 2000.0]))
    assert exact.tolist() == [0, 0.5, 1]
    assert GreyWindow(0, 1).apply(np.asarray([-1.0, 0.0])).tolist() == [0, 1]
    assert GreyWindow(0, 4, "SIGMOID").apply(np.asarray([0.0, 1.0]))[1] == pytest.approx(1 / (1 + np.exp(-1)))


def test_monochrome1_is_inverted_and_padding_does_not_count() -> None:
    plain = read_frame(grey([[0, 10], [20, 30]]))
    assert (read_frame(grey([[0, 10], [20, 30]], PhotometricInterpretation="MONOCHROME1")) == 255 - plain).all()
    padded = read_frame(grey([[-2000, 0], [50, 100]], PixelPaddingValue=-2000))
    assert padded[..., 0].tolist() == [[0, 0], [128, 255]]


def test_the_window_of_an_enhanced_object_stands_in_its_functional_groups() -> None:
    one = load("eCT_Supplemental.dcm")
    first = one.PerFrameFunctionalGroupsSequence[0].get("FrameVOILUTSequence")
    shared = one.SharedFunctionalGroupsSequence[0].get("FrameVOILUTSequence")
    item = (first or shared)[0]
    item.WindowCenter, item.WindowWidth = -5000, 1
    assert read_frame(one).min() == 255


@pytest.mark.parametrize("text", ["1", "a,b", "1,0", "nan,1", "1,2,3"])
def test_a_window_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(InvalidOption, match="window"):
        parse_window(text)


def test_pixel_sizes_and_sides_are_read_where_each_kind_states_them() -> None:
    ct = load("CT_small.dcm")
    assert find_pixel_size(ct) == PixelSize(0.661468, 0.661468, "PixelSpacing")
    assert find_edges(ct) == {"left": "R", "right": "L", "top": "A", "bottom": "P"}
    ultrasound = find_pixel_size(load("examples_palette.dcm"))
    assert ultrasound is not None
    assert ultrasound.source == "UltrasoundRegion"
    assert ultrasound.row_mm == pytest.approx(0.2623, abs=1e-4)
    enhanced = find_pixel_size(load("eCT_Supplemental.dcm"))
    assert enhanced is not None
    assert enhanced.row_mm == pytest.approx(0.388672)
    plate = Dataset()
    plate.ImagerPixelSpacing, plate.PatientOrientation = [0.2, 0.1], ["L", "FP"]
    size = find_pixel_size(plate)
    assert size is not None
    assert (size.is_at_detector, size.area_mm2) == (True, pytest.approx(0.02))
    assert find_edges(plate) == {"left": "R", "right": "L", "top": "HA", "bottom": "FP"}
    oblique = Dataset()
    oblique.ImageOrientationPatient = [0.8, 0.6, 0, 0, 0, -1]
    assert find_edges(oblique) == {"left": "RA", "right": "LP", "top": "H", "bottom": "F"}
    assert find_pixel_size(Dataset()) is None


def test_text_in_pixels_is_seen_where_it_is_and_not_where_it_is_not() -> None:
    for name, expected in (("examples_palette.dcm", True), ("US1_UNCR.dcm", True), ("CT_small.dcm", False)):
        one = load(name)
        assert inspect_text(one, read_frame(one)).is_suspected is expected, name
    draw = np.random.default_rng(0)
    plain = np.asarray(draw.normal(90, 12, (300, 400, 3)).clip(0, 255), np.uint8)
    assert find_text_lines(plain) == []
    picture = Image.fromarray(plain)
    ImageDraw.Draw(picture).text((40, 200), "DOE JANE 1961-04-05", fill="white", font_size=18)
    (line,) = find_text_lines(np.asarray(picture))
    assert line[0] >= 38
    assert 200 <= line[1] < line[3] <= 225
    declared = Dataset()
    declared.BurnedInAnnotation = "YES"
    assert inspect_text(declared, plain).is_suspected


def test_a_segmentation_and_its_report_point_to_the_frames_that_were_segmented() -> None:
    series = [load("CT_small.dcm"), copy.copy(load("CT_small.dcm"))]
    series[1].SOPInstanceUID, series[1].ImagePositionPatient = generate_uid(), [-158.135803, -179.035797, -70.699997]
    masks = np.zeros((2, 128, 128), bool)
    masks[1, 10:20, 30:34] = True
    seg = build_segmentation(series, masks, label="polyp", model="toy", version="1")
    back = hd.seg.segread(io.BytesIO(to_bytes(seg)))
    pixels = back.get_pixels_by_source_instance([series[1].SOPInstanceUID], combine_segments=True)
    assert (pixels[0].astype(bool) == masks[1]).all()
    assert back.FrameOfReferenceUID == series[0].FrameOfReferenceUID
    area = 40 * 0.661468**2
    report = build_report(series, seg, [MaskFinding(1, 40, area, 0.9)], model="toy", version="1")
    found = hd.sr.srread(io.BytesIO(to_bytes(report))).content
    (group,) = found.get_planar_roi_measurement_groups()
    measured = {one.name.meaning: (one.value, one.unit.value) for one in group.get_measurements()}
    assert measured["Area"] == (pytest.approx(area, abs=1e-4), "mm2")
    assert group.referenced_segmentation_frame.referenced_sop_instance_uid == seg.SOPInstanceUID


@pytest.mark.parametrize("name", ["examples_ybr_color.dcm", "examples_rgb_color.dcm", "emri_small.dcm"])
def test_objects_without_a_place_in_space_are_segmented_without_one(name: str) -> None:
    one = load(name)
    masks = np.zeros((count_frames(one), one.Rows, one.Columns), bool)
    masks[-1, 3:9, 4:8] = True
    data = to_bytes(build_segmentation([one], masks, label="polyp", model="toy", version="1"))
    back = dcmread(io.BytesIO(data))
    assert "FrameOfReferenceUID" not in back
    assert back.pixel_array.astype(bool).reshape(-1, one.Rows, one.Columns)[0].sum() == 24
    source = back.PerFrameFunctionalGroupsSequence[0].DerivationImageSequence[0].SourceImageSequence[0]
    assert source.ReferencedSOPInstanceUID == one.SOPInstanceUID
    if count_frames(one) > 1:
        assert int(source.ReferencedFrameNumber) == count_frames(one)
    assert "PlanePositionSequence" not in back.PerFrameFunctionalGroupsSequence[0]


def test_what_is_no_picture_or_too_large_or_broken_is_refused() -> None:
    assert not has_pixels(load("test-SR.dcm"))
    with pytest.raises(UnsupportedMedia, match="no picture"):
        read_frame(load("test-SR.dcm"))
    with pytest.raises(TooLarge, match="128 × 128"):
        read_frame(load("CT_small.dcm"), bounds=DecodeBounds(pixels=1000))
    with pytest.raises(UnsupportedMedia, match="can't be decoded"):
        read_frame(load("MR_truncated.dcm"))
    for data in (b"", b"hello" * 100, b"\x89PNG\r\n\x1a\n" + bytes(200)):
        with pytest.raises(Malformed, match="DICOM"):
            read_object(data)


def test_run_lengths_at_which_the_plugin_panics_are_a_damaged_file() -> None:
    whole = grey(np.arange(64).reshape(8, 8))
    whole.compress(RLELossless)
    file = io.BytesIO()
    whole.save_as(file)
    broken = bytearray(file.getvalue())
    # The second segment begins with a run of more bytes than there are pixels.
    item = broken.rindex(b"\xfe\xff\x00\xe0") + 8
    broken[item + int.from_bytes(broken[item + 8 : item + 12], "little")] = 129
    with pytest.raises(UnsupportedMedia, match="RLE Lossless"):
        read_frame(read_object(bytes(broken)))


def test_elements_that_can_not_be_read_count_as_missing() -> None:
    data = raw("MR_small.dcm")
    at = data.index(b"\x08\x00\x70\x00LO")  # the manufacturer, whose kind of value becomes one that there is not
    broken = read_object(data[: at + 4] + b"C\xfe" + data[at + 6 :])
    assert "Manufacturer" not in broken
    assert np.array_equal(read_frame(broken), read_frame(load("MR_small.dcm")))


def test_nothing_of_a_patient_is_logged_or_told(caplog: pytest.LogCaptureFixture, capfd: Any) -> None:
    caplog.set_level(logging.DEBUG)
    one = load("CT_small.dcm")
    one.PatientName, one.PatientID, one.PatientBirthDate = "SECRET^NAME", "SECRET-ID", "SECRETDATE"
    one.Rows = 9999
    out = io.BytesIO()
    one.save_as(out)
    with pytest.raises(UnsupportedMedia) as told:
        read_frame(read_object(out.getvalue()))
    everything = caplog.text + "".join(capfd.readouterr()) + str(told.value) + repr(vars(told.value))
    assert "SECRET" not in everything


def test_multipart_comes_back_and_a_cut_body_is_refused() -> None:
    files = [b"a\r\n--b\r\n", bytes(range(256)), b""]
    kind, body = build_related(files)
    assert parse_related(kind, body) == files
    assert parse_related(kind.replace("boundary=", 'boundary="') + '"', body) == files
    with pytest.raises(Malformed, match="may be missing"):
        parse_related(kind, body[:-8])
    with pytest.raises(Malformed, match="boundary"):
        parse_related("multipart/form-data; boundary=x", body)


@pytest.mark.parametrize("kind", [zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2, zipfile.ZIP_DEFLATED, zipfile.ZIP_STORED])
def test_archives_that_are_broken_anywhere_are_refused(kind: int) -> None:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", kind) as archive:
        archive.writestr("ö.dcm", b"abc" * 30)
    data = out.getvalue()
    for at in range(0, len(data), 3):
        for piece in (b"\xff" * 3, b"\0" * 3):
            try:
                unpack_zip(data[:at] + piece + data[at + 3 :])
            except (Malformed, TooLarge):
                continue
