"""DICOM in the console, in a real browser: the page of a study, and its frames in the workbench of pictures."""

import io
import zipfile
from pathlib import Path

import numpy as np
from pydicom import dcmread

from fovea_dicom.corrections import read_masks
from plugins.dicom.tests.test_dicom_routes import endoscopy
from services.gateway.tests.browsing import MARKS, check_page, drag, kept

pytestmark = MARKS


def test_a_study_is_a_strip_of_frames_with_areas_and_files_to_save(page, tmp_path):
    (tmp_path / "a.dcm").write_bytes(endoscopy(spacing=[0.1, 0.1]))
    page.goto("/console/segment")
    page.get_by_role("link", name="Open a study").click()
    (tmp_path / "notes.txt").write_text("no picture")
    page.get_by_label("DICOM files").set_input_files([tmp_path / "a.dcm", tmp_path / "notes.txt"])
    page.get_by_role("button", name="Segment", exact=True).click()
    page.get_by_text("Found in 2 of 2 frames").wait_for(timeout=60_000)
    page.get_by_role("heading", name="(a.dcm)").wait_for()
    page.get_by_text("Skipped: notes.txt: The file can't be read as DICOM.").wait_for()
    assert page.locator("fovea-study img").evaluate("image => image.decode().then(() => image.naturalHeight)") == 160
    with page.expect_download() as waiting:
        page.get_by_role("button", name="Report").click()
    assert Path(waiting.value.path()).read_bytes()[128:132] == b"DICM"


def test_frames_are_corrected_in_the_workbench_and_saved_as_dicom(page, tmp_path, see):
    (tmp_path / "a.dcm").write_bytes(endoscopy(spacing=[0.1, 0.1]))
    page.goto("/console/segment")
    page.locator("[data-part=file]").set_input_files([tmp_path / "a.dcm"])
    see(page.get_by_role("option", name="a.2.png, done")).to_be_visible(timeout=60_000)
    objects = zipfile.ZipFile(io.BytesIO(kept(page, "All as DICOM SEG", "dicom.zip")))
    assert objects.namelist() == ["a.seg.dcm", "a.sr.dcm"]
    before = dcmread(io.BytesIO(objects.read("a.seg.dcm")))
    assert before.SegmentSequence[0].SegmentAlgorithmType == "AUTOMATIC"
    page.get_by_role("button", name="Correct", exact=True).click()
    drag(page, (4, 8), (24, 8), 160, 160)
    see(page.locator(".finding")).to_have_count(2)
    check_page(page)
    objects = zipfile.ZipFile(io.BytesIO(kept(page, "All as DICOM SEG", "dicom.zip")))
    after = dcmread(io.BytesIO(objects.read("a.seg.dcm")))
    assert (after.SegmentSequence[0].SegmentAlgorithmType, after.InstanceNumber) == ("SEMIAUTOMATIC", 2)
    (instance,) = {name for name, _ in read_masks(after)}
    old, new = read_masks(before), read_masks(after)
    assert new[instance, 1][8, 14]
    assert not old[instance, 1][8, 14]
    assert np.array_equal(old[instance, 2], new[instance, 2])


def test_dicom_needs_dicom_and_a_skipped_file_is_named(page, tmp_path, see, complaints):
    page.goto("/console/segment")
    page.get_by_role("button", name="Use the model’s example").click()
    page.locator("[data-part=result]").wait_for(timeout=60_000)
    page.get_by_role("button", name="All as DICOM SEG").click()
    alert = page.get_by_role("alert")
    see(alert).to_contain_text("There is no DICOM file here")
    see(alert).to_contain_text("Drop the DICOM files of the study on this page")
    (tmp_path / "broken.dcm").write_bytes(bytes(128) + b"DICM" + bytes(40))
    page.locator("[data-part=file]").set_input_files([tmp_path / "broken.dcm"])
    see(alert).to_contain_text("broken.dcm")
    see(page.locator("[data-part=name]")).to_contain_text("example")
    complaints.clear()
