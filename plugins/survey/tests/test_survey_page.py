"""The console's page of a road survey in a real browser: a map with figures."""

from pathlib import Path

import httpx2
import pytest

from plugins.survey.tests.test_survey import photograph
from services.detection.models.planner import FoveaPlanner
from services.detection.models.yolo9tr import Yolo9trBoxDetector
from services.gateway.tests.browsing import MARKS, browser, figure, watched
from services.gateway.tests.stage import fronted
from shared.serving.build_app import build
from shared.settings import Settings
from tests.harness.waiting import wait_until

pytestmark = MARKS


@pytest.fixture
def page(tmp_path):
    settings = Settings(_env_file=None, data_dir=tmp_path, intra_op_threads=1)
    app = build("detection", servables={"yolo9tr": Yolo9trBoxDetector, "planner": FoveaPlanner}, settings=settings)
    complaints: list[str] = []
    with fronted(app, "detection", tmp_path) as (url, _, _), browser() as chromium:
        wait_until(lambda: is_ready(url), 120, "the service's readiness")
        with watched(chromium, url, complaints) as opened:
            yield opened
    assert not complaints


def is_ready(url: str) -> bool:
    entries = httpx2.get(f"{url}/v1/models").json()["data"]
    return (
        bool(entries)
        and all(one["ready"] for one in entries)
        and httpx2.post(f"{url}/v1/detect/survey").status_code != 404
    )


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
