"""The console's page of a DICOM study in a real browser: strips, areas and files to save."""

from pathlib import Path

import httpx2
import pytest

from plugins.dicom.tests.test_dicom_routes import endoscopy
from services.gateway.tests.browsing import MARKS
from services.gateway.tests.stage import fronted
from services.medical_seg.models.pranet import PraNetSegmenter
from shared.serving.build_app import build
from shared.settings import Settings
from tests.harness.waiting import wait_until

pytestmark = MARKS


@pytest.fixture
def url(tmp_path):
    settings = Settings(_env_file=None, data_dir=tmp_path, intra_op_threads=1)
    app = build("medical-seg", servables={"pranet": PraNetSegmenter}, settings=settings)
    with fronted(app, "medical-seg", tmp_path) as (address, *_):
        wait_until(lambda: is_ready(address), 120, "the service's readiness")
        yield address


def is_ready(url: str) -> bool:
    entries = httpx2.get(f"{url}/v1/models").json()["data"]
    return (
        bool(entries)
        and all(one["ready"] for one in entries)
        and httpx2.post(f"{url}/v1/dicomweb/studies").status_code != 404
    )


def test_a_study_is_a_strip_of_frames_with_areas_and_files_to_save(page, tmp_path):
    (tmp_path / "a.dcm").write_bytes(endoscopy(spacing=[0.1, 0.1]))
    page.goto("/console/segment")
    page.get_by_role("link", name="Open a study").click()
    (tmp_path / "notes.txt").write_text("no picture")
    page.get_by_label("DICOM files").set_input_files([tmp_path / "a.dcm", tmp_path / "notes.txt"])
    page.get_by_role("button", name="Segment", exact=True).click()
    page.get_by_text("Found in 2 of 2 frames").wait_for(timeout=60_000)
    page.get_by_text("Skipped: notes.txt: The file can't be read as DICOM.").wait_for()
    assert page.locator("fovea-study img").evaluate("image => image.decode().then(() => image.naturalHeight)") == 160
    with page.expect_download() as waiting:
        page.get_by_role("button", name="Report").click()
    assert Path(waiting.value.path()).read_bytes()[128:132] == b"DICM"
