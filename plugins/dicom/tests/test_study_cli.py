"""`fovea segment STUDY/` and a PACS that stores: through the gateway, as jobs, to files."""

import io
import json
import os
import shutil
from pathlib import Path

import httpx2
import pytest
from pydicom import dcmread

from fovea_dicom import segment_study
from plugins.dicom.tests.test_dicom_objects import raw
from plugins.dicom.tests.test_dicom_routes import endoscopy
from tests.harness.models import ok


def test_a_folder_of_dicom_becomes_segmentations_and_reports(fovea, url, tmp_path):
    study = tmp_path / os.fsdecode(b"M\xfcller")
    (study / "series1").mkdir(parents=True)
    (study / "series1" / "IM0").write_bytes(endoscopy(spacing=[0.1, 0.1]))
    (study / "IM1").write_bytes(raw("test-SR.dcm"))
    (study / "readme.txt").write_text("no picture")
    (study / "empty.dcm").write_bytes(b"")
    (study / "cut.dcm").write_bytes(raw("MR_small.dcm")[:4000])
    for name in (b"M\xf6ller.dcm", b"M\xfcller.dcm"):
        (study / os.fsdecode(name)).write_bytes(raw("CT_small.dcm"))
    code, out, err = fovea("segment", study, "-o", tmp_path / "out")
    assert code == 0, err
    assert "(series1/IM0) found in 2 of 2 frames" in " ".join(out.split())
    assert "mm²" in out
    skipped = ("IM1: SR without a picture", "readme.txt is not a DICOM file", "empty.dcm is empty", "skipped: cut.dcm:")
    skipped += (r"M\udcfcller.dcm: the same object as M\udcf6ller.dcm",)
    assert [told for told in skipped if told not in err] == []
    films = [one for one in (tmp_path / "out").glob("*.json") if "series1/IM0" in one.read_text()]
    (facts,), (other,) = films, set((tmp_path / "out").glob("*.json")) - set(films)
    told = [text for frame in json.loads(other.read_text())["instances"][0]["frames"] for text in frame["warnings"]]
    assert told
    assert all(text.split(".")[0][:60] in " ".join(err.split()) for text in told)
    stem = facts.with_suffix("")
    assert {dcmread(f"{stem}.{kind}.dcm").Modality for kind in ("seg", "sr")} == {"SEG", "SR"}
    assert json.loads(facts.read_text())["instances"][0]["frames"][0]["area_mm2"] > 0
    assert "SECRET" not in out + err + facts.read_text()
    masks = Path(f"{stem}.masks")
    assert len(list(masks.iterdir())) == 2
    assert "segment" not in str(ok(httpx2.get(f"{url}/v1/jobs"))["jobs"])  # what is saved is not kept for a day
    (tmp_path / "file").touch()
    assert fovea("segment", study / "series1", "-o", tmp_path / "file")[0] != 0
    assert "segment" in str(ok(httpx2.get(f"{url}/v1/jobs"))["jobs"])  # what could not be saved can be fetched
    for name in (".DS_Store", "._1.2.1.png"):  # written by a Mac that shows the folder
        (masks / name).write_bytes(b"x")
    code, out, err = fovea("correct", f"{stem}.seg.dcm", masks, "-p", study, "-o", tmp_path / "new", "--creator", "Doe")
    assert code == 0, err
    assert "0 frames changed" in out
    assert dcmread(tmp_path / "new" / f"{stem.name}.v2.seg.dcm").InstanceNumber == 2
    archive = shutil.make_archive(tmp_path / "sent", "zip", study / "series1")
    code, out, err = fovea("segment", archive, "-o", tmp_path / "unpacked")
    assert (code, "(IM0) found in 2 of 2" in " ".join(out.split())) == (0, True), err
    code, out, err = fovea("correct", f"{stem}.seg.dcm", masks, "-p", archive, "-o", tmp_path / "new")
    assert (code, "0 frames changed" in out) == (0, True), err
    empty = shutil.make_archive(tmp_path / "masks", "zip", masks)
    for content, told in ((Path(empty).read_bytes(), "no DICOM file"), (Path(archive).read_bytes()[99:], "unpacked")):
        (tmp_path / "other.zip").write_bytes(content)
        code, _, err = fovea("segment", tmp_path / "other.zip", "-o", tmp_path / "out")
        assert (code, told in err) == (4 if told[0] == "n" else 3, True), err
    code, _, err = fovea("correct", "nope.seg.dcm", masks, "-p", study)
    assert (code, "There is no file 'nope.seg.dcm'" in err) == (4, True)
    assert fovea("correct", f"{stem}.seg.dcm", tmp_path / "nowhere", "-p", study)[0] == 2
    code, _, err = fovea("segment", "pacs:1.2.3", "-o", tmp_path / "out")
    assert (code, "No PACS is configured" in err) == (3, True)


@pytest.mark.parametrize(("limit", "is_split"), [
    ({}, False), ({"MAX_ARCHIVE_BYTES": 1}, True), pytest.param({"MAX_FILES": 1}, True, marks=pytest.mark.release),
])  # fmt: skip
def test_films_of_one_series_are_written_apart_also_when_sent_apart(fovea, tmp_path, monkeypatch, limit, is_split):
    for name, most in limit.items():
        monkeypatch.setattr(segment_study if name == "MAX_ARCHIVE_BYTES" else segment_study.bodies, name, most)
    (tmp_path / "study").mkdir()
    for frames in (1, 2, 3):
        one = dcmread(io.BytesIO(endoscopy(frames)))
        one.SeriesInstanceUID = "1.2.3"
        one.save_as(tmp_path / "study" / f"{frames}.dcm")
    code, _, err = fovea("segment", tmp_path / "study", "-o", tmp_path / "out")
    assert (code, "3 parts" in err) == (0, is_split), err
    written = {file.name.removeprefix("series-1.2.3"): file for file in (tmp_path / "out").glob("*.seg.dcm")}
    assert set(written) == {".seg.dcm", "-2.seg.dcm", "-3.seg.dcm"}
    assert {int(dcmread(file).NumberOfFrames) for file in written.values()} == {1, 2, 3}
    assert len(list((tmp_path / "out").glob("*.masks/*.png"))) == 6


def test_slices_that_a_shell_lists_are_one_segmentation(fovea, tmp_path):
    slices = [tmp_path / f"{number}.dcm" for number in (1, 2, 3)]
    for number, file in enumerate(slices):
        one = dcmread(io.BytesIO(endoscopy(1)))
        one.StudyInstanceUID, one.SeriesInstanceUID, one.InstanceNumber = "1.2", "1.2.4", number
        one.save_as(file)
    code, _, err = fovea("segment", *slices, "--window", "none")
    assert (code, "center,width" in err) == (2, True), err
    code, _, err = fovea("segment", "--glow", "3", *slices)
    assert (code, "glow" in err) == (2, True), err
    code, _, err = fovea("segment", *slices, "-o", tmp_path / "out", "--normalise", "minmax", "--coco", "polyp")
    assert (code, "--coco" in err) == (0, True), err
    assert int(dcmread(tmp_path / "out" / "series-1.2.4.seg.dcm").NumberOfFrames) == 3
    (instance, *_) = json.loads((tmp_path / "out" / "series-1.2.4.json").read_text())["instances"]
    assert instance["frames"][0]["max_probability"] == 1  # as only stretched probabilities are
