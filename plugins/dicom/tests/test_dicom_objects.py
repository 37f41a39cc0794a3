"""DICOM objects read as viewers show them, and derived objects that point back to them. Files are pydicom's own."""

import copy
import io
import logging
import math
import shutil
import subprocess
import types
import warnings
import zipfile
from collections.abc import Callable, Sequence
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

from fovea.errors import InvalidOption, Malformed, TooLarge, UnsupportedMedia
from fovea_dicom.bodies import build_related, parse_related, unpack_zip
from fovea_dicom.burnt_in import find_text_lines, inspect_text
from fovea_dicom.derived_objects import MaskFinding, build_report, build_segmentation, to_bytes
from fovea_dicom.geometry import PixelSize, count_frames, find_edges, find_functional_item, find_pixel_size
from fovea_dicom.reading import has_pixels, read_frame, read_object
from fovea_dicom.schemas import SeriesOut
from fovea_dicom.sources import fill_identity, has_geometry
from fovea_dicom.windowing import GreyWindow, parse_window, to_grey
from plugins.dicom.tests.test_dicom_study import check_references, holding, read_report
from shared.vision.limits import DecodeBounds


@cache
def raw(name: str) -> bytes:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = get_testdata_file(name, download=False)
    if found is None:
        pytest.fail(f"{name} is not there: pip install pydicom-data")
    return Path(str(found)).read_bytes()


def load(name: str) -> FileDataset:
    return read_object(raw(name))


@pytest.mark.parametrize(("coded", "plain", "most"), [
    ("MR_small_RLE", "MR_small", 0), ("MR_small_jp2klossless", "MR_small", 0),
    ("MR_small_jpeg_ls_lossless", "MR_small", 0), ("MR_small_bigendian", "MR_small", 0),
    ("MR_small_implicit", "MR_small", 0), ("SC_rgb_rle", "SC_rgb", 0), ("emri_small_RLE", "emri_small", 0),
    ("OBXXXX1A_expb", "OBXXXX1A", 0), ("SC_rgb_jpeg_dcmtk", "SC_rgb", 3), ("SC_rgb_dcmtk_+eb+cy+np", "SC_rgb", 3),
    ("SC_ybr_full_422_uncompressed", "SC_rgb", 3),
])  # fmt: skip
def test_no_transfer_syntax_changes_a_pixel_but_those_with_loss_a_little(coded, plain, most):
    one, wanted = load(f"{coded}.dcm"), read_frame(load(f"{plain}.dcm")).astype(int)
    first, found = read_frame(one), read_frame(one).astype(int)
    assert (first == found).all()
    assert np.abs(found - wanted).mean() <= most
    assert np.ptp(wanted) > 50


def grey(values: Any, **more: Any) -> FileDataset:
    stored = np.asarray(values, np.int16)
    found = copy.copy(load("CT_small.dcm"))
    found.Rows, found.Columns, found.PixelData = *stored.shape, stored.tobytes()
    for name in ("WindowCenter", "WindowWidth", "PixelPaddingValue"):
        if name in found:
            delattr(found, name)
    for name, value in {"RescaleSlope": 1, "RescaleIntercept": 0, **more}.items():
        setattr(found, name, value)
    return found


def test_a_window_is_applied_to_rescaled_values_as_the_standard_writes_it_and_what_is_none_refused():
    one = grey([[0, 500], [1000, 2000]], RescaleSlope=2, RescaleIntercept=-1000, WindowCenter=0.5, WindowWidth=2001)
    assert read_frame(one)[..., 0].tolist() == [[0, 128], [255, 255]]
    assert read_frame(one, window=GreyWindow(1000.5, 2001))[..., 0].tolist() == [[0, 0], [128, 255]]
    assert GreyWindow(1000, 2000, "LINEAR_EXACT").apply(np.asarray([0.0, 1000.0, 2000.0])).tolist() == [0, 0.5, 1]
    assert GreyWindow(0, 1).apply(np.asarray([-1.0, 0.0])).tolist() == [0, 1]
    assert GreyWindow(0, 4, "SIGMOID").apply(np.asarray([0.0, 1.0]))[1] == pytest.approx(1 / (1 + np.exp(-1)))
    for text in ("1", "a,b", "1,0", "nan,1", "1,2,3"):
        with pytest.raises(InvalidOption, match="window"):
            parse_window(text)


def test_monochrome1_is_inverted_and_padding_does_not_count():
    plain = read_frame(grey([[0, 10], [20, 30]]))
    assert (read_frame(grey([[0, 10], [20, 30]], PhotometricInterpretation="MONOCHROME1")) == 255 - plain).all()
    stored = [[-2000, 0], [50, 100]]
    padded = read_frame(grey(stored, PixelPaddingValue=-2000))
    assert padded[..., 0].tolist() == [[0, 0], [128, 255]]
    unsigned = grey(stored)
    unsigned.add_new("PixelPaddingValue", "US", 2**16 - 2000)
    assert (read_frame(unsigned) == padded).all()
    inverted = grey(stored, PixelPaddingValue=-2000, PhotometricInterpretation="MONOCHROME1")
    assert read_frame(inverted)[..., 0].tolist() == [[0, 255], [128, 0]]
    assert read_frame(inverted, window=GreyWindow(0, 2000))[0, 0].tolist() == [0, 0, 0]


def test_twelve_bits_are_read_from_the_upper_end_of_their_words_too_and_from_jpeg():
    for name in ("JPGLosslessP14SV1_1s_1f_8b.dcm", "JPGExtended.dcm"):
        assert np.ptp(read_frame(load(name))) > 100
    stored = np.asarray([[0, 1000], [2000, 4095]], np.uint16)
    low, high = (grey((stored << shift).view(np.int16), PixelRepresentation=0, BitsStored=12) for shift in (0, 4))
    low.HighBit, high.HighBit = 11, 15
    assert (read_frame(high) == (wanted := read_frame(low))).all()
    assert (read_frame(high) == wanted).all()  # once more: reading changes nothing
    high.BitsStored = None
    assert np.ptp(read_frame(read_object(to_bytes(high)))) == 255


def test_a_table_s_entries_are_bytes_or_words_in_the_order_of_the_file():
    table, one = holding(LUTDescriptor=[4, 0, 8]), grey([[0, 1], [2, 3]])
    for bits, order, kind in ((8, True, "u1"), (16, True, "<u2"), (16, False, ">u2")):
        table.LUTDescriptor[2], one.VOILUTSequence = bits, [table]
        table.add_new("LUTData", "OW", (np.arange(4) * 2 ** (bits - 2)).astype(kind).tobytes())
        one.set_original_encoding(False, order)
        assert to_grey(np.arange(4), one, 0, None).tolist()[:3] == [0, 64, 128]


def test_the_window_of_an_enhanced_object_stands_in_its_functional_groups():
    one = load("eCT_Supplemental.dcm")
    first = one.PerFrameFunctionalGroupsSequence[0].get("FrameVOILUTSequence")
    item = (first or one.SharedFunctionalGroupsSequence[0].get("FrameVOILUTSequence"))[0]
    item.WindowCenter, item.WindowWidth = -5000, 1
    assert read_frame(one).min() == 255


def test_pixel_sizes_and_sides_are_read_where_each_kind_states_them():
    ct = load("CT_small.dcm")
    assert find_pixel_size(ct) == PixelSize(0.661468, 0.661468, "PixelSpacing")
    assert find_edges(ct) == {"left": "R", "right": "L", "top": "A", "bottom": "P"}
    ultrasound, enhanced = (find_pixel_size(load(f"{name}.dcm")) for name in ("examples_palette", "eCT_Supplemental"))
    assert (ultrasound.source, ultrasound.row_mm) == ("UltrasoundRegion", pytest.approx(0.2623, abs=1e-4))
    assert enhanced.row_mm == pytest.approx(0.388672)
    plate = Dataset()
    plate.ImagerPixelSpacing = [0.2, 0.1]
    size = find_pixel_size(plate)
    assert (size.is_at_detector, size.area_mm2) == (True, pytest.approx(0.02))
    assert find_pixel_size(Dataset()) is None


def test_frames_are_counted_whatever_an_object_says_and_a_frame_s_own_item_counts_before_the_shared_one():
    for said, frames in ((None, 1), (0, 1), (1, 1), (7, 7), (-3, 1), ("two", 1), ([2, 3], 1)):
        assert count_frames(types.SimpleNamespace(get={"NumberOfFrames": said}.get)) == frames

    def measured(row: float) -> Dataset:
        return holding(PixelMeasuresSequence=[holding(PixelSpacing=[row, 1])])

    one = holding(PerFrameFunctionalGroupsSequence=[measured(1), Dataset(), measured(3)], PixelSpacing=[7, 7])
    one.SharedFunctionalGroupsSequence = [measured(9), measured(8)]
    sizes = [find_pixel_size(one, index) for index in range(4)]
    assert ([size.row_mm for size in sizes if size], find_pixel_size(one)) == ([1, 9, 3, 9], sizes[0])
    assert find_functional_item(one, "PlaneOrientationSequence", 0) is None
    assert find_functional_item(Dataset(), "PixelMeasuresSequence", 0) is None


def test_a_size_is_two_positive_numbers():
    for facts, size in (
        ({"PixelSpacing": [0.5, 0.2], "ImagerPixelSpacing": [9, 9]}, PixelSize(0.5, 0.2, "PixelSpacing")),
        ({"NominalScannedPixelSpacing": [3, 4]}, PixelSize(3, 4, "NominalScannedPixelSpacing")),
        ({"ImagerPixelSpacing": [0.5, 0.5]}, PixelSize(0.5, 0.5, "ImagerPixelSpacing")),
        *(({"PixelSpacing": no}, None) for no in ([0, 1], [-1, 1], [1], [1, 1, 1], 1.0, ["x", "y"], [math.inf, 1])),
        ({"PixelSpacing": [0, 1], "ImagerPixelSpacing": [2, 3]}, PixelSize(2, 3, "ImagerPixelSpacing")),
    ):
        assert find_pixel_size(types.SimpleNamespace(get=facts.get)) == size, facts


def region(x: object = 0.01, y: object = 0.02, units: tuple[int, int] = (3, 3)) -> types.SimpleNamespace:
    facts = {"PhysicalUnitsXDirection": units[0], "PhysicalUnitsYDirection": units[1]}
    return types.SimpleNamespace(get={**facts, "PhysicalDeltaX": x, "PhysicalDeltaY": y}.get)


@pytest.mark.parametrize(("regions", "size"), [
    ([region()], (0.2, 0.1)), ([region(-0.01, -0.02)], (0.2, 0.1)),
    ([region(), region(), region(units=(4, 3))], (0.2, 0.1)), ([region(units=(3, 4))], None),
    ([region(), region(0.03)], None), ([region(0.0)], None), ([region(None)], None), ([], None),
])  # fmt: skip
def test_ultrasound_has_a_size_where_its_regions_agree(regions, size):
    found = find_pixel_size(types.SimpleNamespace(get={"SequenceOfUltrasoundRegions": regions}.get))
    assert (found and (found.row_mm, found.column_mm, found.source)) == (size and (*size, "UltrasoundRegion"))


@pytest.mark.parametrize(("cosines", "right", "left", "bottom", "top"), [
    ([1, 0, 0, 0, 1, 0], "L", "R", "P", "A"), ([0, 1, 0, 0, 0, -1], "P", "A", "F", "H"),
    ([-0.6, 0, 0.8, 0, -1, 0], "HR", "FL", "A", "P"), ([1, 0.08, 0.09, 0, 1, 0], "LH", "RF", "P", "A"),
    ([0.6, -0.6, 0.5, 0, 1, 0], "LAH", "RPF", "P", "A"), ([1, 0.087, 0, 0, 1, 0], "L", "R", "P", "A"),
])  # fmt: skip
def test_edges_are_named_by_the_nearest_axes_first(cosines, right, left, bottom, top):
    expected = {"left": left, "right": right, "top": top, "bottom": bottom}
    assert find_edges(holding(ImageOrientationPatient=cosines)) == expected
    own = holding(PlaneOrientationSequence=[holding(ImageOrientationPatient=cosines)])
    enhanced = holding(PerFrameFunctionalGroupsSequence=[Dataset(), own])
    assert (find_edges(enhanced, 1), find_edges(enhanced)) == (expected, None)


def test_edges_are_those_that_are_named_and_unknown_where_not_both_are():
    both = {"left": "R", "right": "L", "top": "HA", "bottom": "FP"}
    for named, edges in ((["L", "FP"], both), *((odd, None) for odd in ([], ["L"], ["L", ""], ["L", "P", "F"]))):
        assert find_edges(types.SimpleNamespace(get={"PatientOrientation": named}.get)) == edges


def test_text_in_pixels_is_seen_where_it_is_and_not_where_it_is_not():
    for name, expected in (("examples_palette.dcm", True), ("US1_UNCR.dcm", True), ("CT_small.dcm", False)):
        one = load(name)
        assert inspect_text(one, read_frame(one)).is_suspected is expected, name
    plain = np.asarray(np.random.default_rng(0).normal(90, 12, (300, 400, 3)).clip(0, 255), np.uint8)
    assert find_text_lines(plain) == []
    picture = Image.fromarray(plain)
    ImageDraw.Draw(picture).text((40, 200), "DOE JANE 1961-04-05", fill="white", font_size=18)
    (line,) = find_text_lines(np.asarray(picture))
    assert line[0] >= 38
    assert 200 <= line[1] < line[3] <= 225
    declared = Dataset()
    declared.BurnedInAnnotation = "YES"
    assert inspect_text(declared, plain).is_suspected


def make_series(z: Sequence[float | None]) -> list[Dataset]:
    """Single-frame objects of one series at these places along its axis; None leaves the geometry out."""
    series = []
    for number, place in enumerate(z, 1):
        one = copy.deepcopy(load("CT_small.dcm"))
        one.SOPInstanceUID, one.InstanceNumber = generate_uid(), number
        if place is None:
            del one.FrameOfReferenceUID, one.ImagePositionPatient, one.ImageOrientationPatient
        else:
            one.ImagePositionPatient = [-158.135803, -179.035797, place]
        series.append(one)
    return series


SOURCES: dict[str, Callable[[], Sequence[Dataset]]] = {
    "four pictures without geometry": lambda: make_series([None] * 4),
    "four slices, out of order": lambda: make_series([-70, -75, -60, -65]),
    "one picture": lambda: make_series([None]),
    "one slice": lambda: make_series([-70]),
    "a film without geometry": lambda: [load("examples_ybr_color.dcm")],
    "an enhanced object in RLE": lambda: [load("emri_small_RLE.dcm")],
    "an enhanced object with geometry": lambda: [load("eCT_Supplemental.dcm")],
}


@pytest.fixture(scope="module", params=SOURCES)
def segmented(request):
    """Sources, masks of another size in every frame (the second is empty), and the SEG and SR that are made of them."""
    sources = fill_identity(SOURCES[request.param]())
    masks = np.zeros((sum(map(count_frames, sources)), sources[0].Rows, sources[0].Columns), bool)
    for frame in range(len(masks)):
        masks[frame, 1 : 2 + frame % 40, 3 : 10 + frame // 40] = frame != 1
    found = [MaskFinding(frame, area, None, 1, 0.5) for frame, area in enumerate(masks.sum((1, 2)).tolist()) if area]
    seg = build_segmentation(sources, masks, label="polyp", model="toy", version="1")
    return sources, masks, to_bytes(seg), to_bytes(build_report(sources, seg, found, model="toy", version="1"))


def test_each_area_mask_and_geometry_is_that_of_the_frame_it_refers_to_also_for_highdicom(segmented):
    sources, masks, seg, report = segmented
    series = SeriesOut.model_construct(segmentation=seg, report=report)
    check_references(series)
    assert [row["Area"] for row in read_report(series)] == [area for area in masks.sum((1, 2)).tolist() if area]
    back = hd.seg.segread(io.BytesIO(seg))
    frames = [index for index in range(len(masks)) if index != 1]
    if count_frames(sources[0]) > 1:
        read, named = back.get_pixels_by_source_frame, (sources[0].SOPInstanceUID, [index + 1 for index in frames])
    else:
        read, named = back.get_pixels_by_source_instance, ([sources[index].SOPInstanceUID for index in frames],)
    assert (read(*named, combine_segments=True).astype(bool) == masks[frames]).all()
    stated = dcmread(io.BytesIO(seg))
    has_size = "PixelMeasuresSequence" in stated.SharedFunctionalGroupsSequence[0]
    assert has_size == (find_pixel_size(sources[0]) is not None)
    reference = sources[0].get("FrameOfReferenceUID") if has_geometry(sources) else None
    assert stated.get("FrameOfReferenceUID") == reference
    assert ("PlanePositionSequence" in stated.PerFrameFunctionalGroupsSequence[0]) == (reference is not None)


def check_with_dciodvfy(folder: Path, *files: bytes) -> None:
    for place, data in enumerate(files):
        (folder / f"{place}.dcm").write_bytes(data)
        said = subprocess.run(["dciodvfy", folder / f"{place}.dcm"], capture_output=True, text=True, check=False)
        assert "Error" not in said.stderr + said.stdout


@pytest.mark.skipif(shutil.which("dciodvfy") is None, reason="dciodvfy is not installed")
def test_dciodvfy_finds_no_error(segmented, tmp_path):
    check_with_dciodvfy(tmp_path, *segmented[2:])


def test_what_is_no_picture_or_too_large_or_broken_is_refused():
    assert not has_pixels(load("test-SR.dcm"))
    with pytest.raises(UnsupportedMedia, match="no picture"):
        read_frame(load("test-SR.dcm"))
    with pytest.raises(TooLarge, match="128 × 128"):
        read_frame(load("CT_small.dcm"), bounds=DecodeBounds(pixels=1000))
    for data in (b"", b"hello" * 100, b"\x89PNG\r\n\x1a\n" + bytes(200)):
        with pytest.raises(Malformed, match="DICOM"):
            read_object(data)


def test_a_frame_at_which_a_decoder_panics_or_aborts_its_process_is_a_damaged_file():
    whole, file = grey(np.arange(64).reshape(8, 8)), io.BytesIO()
    whole.compress(RLELossless)
    whole.save_as(file)
    runs, other = bytearray(file.getvalue()), bytearray(raw("MR_small_jpeg_ls_lossless.dcm"))
    # The second segment begins with a run of more bytes than there are pixels; samples of JPEG-LS have 255 bits.
    item = runs.rindex(b"\xfe\xff\x00\xe0") + 8
    runs[item + int.from_bytes(runs[item + 8 : item + 12], "little")] = 129
    other[other.index(b"\xff\xd8\xff\xf7") + 6] = 255
    for broken, name in ((runs, "RLE Lossless"), (other, "Frame 1 .*JPEG-LS"), (raw("MR_truncated.dcm"), "decoded")):
        with pytest.raises(UnsupportedMedia, match=name):
            read_frame(read_object(bytes(broken)))
    assert np.array_equal(read_frame(load("MR_small_jpeg_ls_lossless.dcm")), read_frame(load("MR_small.dcm")))


def test_elements_that_can_not_be_read_count_as_missing():
    data = raw("MR_small.dcm")
    at = data.index(b"\x08\x00\x70\x00LO")  # the manufacturer, whose kind of value becomes one that there is not
    broken = read_object(data[: at + 4] + b"C\xfe" + data[at + 6 :])
    assert "Manufacturer" not in broken
    assert np.array_equal(read_frame(broken), read_frame(load("MR_small.dcm")))


def test_nothing_of_a_patient_is_logged_or_told(caplog, capfd):
    caplog.set_level(logging.DEBUG)
    one = load("CT_small.dcm")
    one.PatientName, one.PatientID, one.PatientBirthDate = "SECRET^NAME", "SECRET-ID", "SECRETDATE"
    one.Rows = 9999
    out = io.BytesIO()
    one.save_as(out)
    with pytest.raises(UnsupportedMedia) as told:
        read_frame(read_object(out.getvalue()))
    assert "SECRET" not in caplog.text + "".join(capfd.readouterr()) + str(told.value) + repr(vars(told.value))


def test_multipart_comes_back_and_a_cut_body_is_refused():
    files = [b"a\r\n--b\r\n", bytes(range(256)), b""]
    kind, body = build_related(files)
    assert parse_related(kind, body) == files
    assert parse_related(kind.replace("boundary=", 'boundary="') + '"', body) == files
    with pytest.raises(Malformed, match="may be missing"):
        parse_related(kind, body[:-8])
    with pytest.raises(Malformed, match="boundary"):
        parse_related("multipart/form-data; boundary=x", body)


@pytest.mark.parametrize("kind", [zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2, zipfile.ZIP_DEFLATED, zipfile.ZIP_STORED])
def test_archives_that_are_broken_anywhere_are_refused(kind):
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
