"""The console's pages of many files in a real browser: a DICOM study as strips, a road survey as a map."""

from pathlib import Path

import httpx2
import pytest

from services.detection.models.planner import FoveaPlanner
from services.detection.models.yolo9tr import Yolo9trBoxDetector
from services.detection.survey.routes import router as survey_router
from services.detection.tests.test_survey import photograph
from services.gateway.tests.browsing import MARKS, browser, figure, watched
from services.gateway.tests.stage import fronted
from services.medical_seg.dicom.routes import router as study_router
from services.medical_seg.models.pranet import PraNetSegmenter
from services.medical_seg.tests.test_dicom_routes import endoscopy
from shared.serving.build_app import build
from shared.settings import Settings
from tests.harness.waiting import wait_until

pytestmark = MARKS

KINDS = {
    "medical-seg": (study_router, {"pranet": PraNetSegmenter}, "/v1/dicomweb/studies"),
    "detection": (survey_router, {"yolo9tr": Yolo9trBoxDetector, "planner": FoveaPlanner}, "/v1/detect/survey"),
}


@pytest.fixture
def page(request, tmp_path):
    router, servables, path = KINDS[request.param]
    settings = Settings(_env_file=None, data_dir=tmp_path, intra_op_threads=1)
    app = build(request.param, routers=[router], servables=servables, settings=settings)
    complaints: list[str] = []
    with fronted(app, request.param, tmp_path) as (url, _, _), browser() as chromium:
        wait_until(lambda: is_ready(url, path), 120, "the service's readiness")
        with watched(chromium, url, complaints) as opened:
            yield opened
    assert not complaints


def is_ready(url: str, path: str) -> bool:
    entries = httpx2.get(f"{url}/v1/models").json()["data"]
    return bool(entries) and all(one["ready"] for one in entries) and httpx2.post(url + path).status_code != 404


@pytest.mark.parametrize("page", ["medical-seg"], indirect=True)
def test_a_study_is_a_strip_of_frames_with_areas_and_files_to_save(page, tmp_path):
    (tmp_path / "a.dcm").write_bytes(endoscopy(spacing=[0.1, 0.1]))
    page.goto("/console/segment")
    page.get_by_role("link", name="Open a study").click()
    page.get_by_label("DICOM files").set_input_files(tmp_path / "a.dcm")
    page.get_by_role("button", name="Segment", exact=True).click()
    page.get_by_text("Found in 2 of 2 frames").wait_for(timeout=60_000)
    assert page.locator("fovea-study img").evaluate("image => image.decode().then(() => image.naturalHeight)") == 160
    with page.expect_download() as waiting:
        page.get_by_role("button", name="Report").click()
    assert Path(waiting.value.path()).read_bytes()[128:132] == b"DICM"


@pytest.mark.parametrize("page", ["detection"], indirect=True)
def test_a_survey_is_a_map_with_figures(page, tmp_path):
    for number in range(3):
        (tmp_path / f"{number}.jpg").write_bytes(photograph(50 + number * 0.0004, 8, number))
    page.goto("/console/detect")
    page.get_by_role("link", name="Make a survey").click()
    page.get_by_label("Photographs").set_input_files([tmp_path / f"{number}.jpg" for number in range(3)])
    page.get_by_role("button", name="Survey", exact=True).click()
    page.locator("fovea-survey [data-part=result]").wait_for(timeout=60_000)
    assert figure(page.locator("fovea-survey"), "road") == "0.09 km"
    page.locator("[data-part=map]").evaluate("image => image.decode()")
    with page.expect_download() as waiting:
        page.get_by_role("button", name="GeoJSON").click()
    assert '"FeatureCollection"' in Path(waiting.value.path()).read_text()
