"""The console's page of a road survey in a real browser: a map with figures."""

import re
import zipfile
from pathlib import Path

import httpx2
import pytest

from plugins.survey.tests.test_survey import photograph
from services.detection.models.planner import FoveaPlanner
from services.detection.models.yolo9tr import Yolo9trBoxDetector
from services.gateway.tests.browsing import MARKS, figure
from services.gateway.tests.stage import fronted
from shared.serving.build_app import build
from shared.settings import Settings
from tests.harness.waiting import wait_until

pytestmark = MARKS


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    folder = tmp_path_factory.mktemp("survey")
    settings = Settings(_env_file=None, data_dir=folder, intra_op_threads=1)
    app = build("detection", servables={"yolo9tr": Yolo9trBoxDetector, "planner": FoveaPlanner}, settings=settings)
    with fronted(app, "detection", folder) as (address, *_):
        wait_until(lambda: is_ready(address), 120, "the service's readiness")
        yield address


def is_ready(url: str) -> bool:
    entries = httpx2.get(f"{url}/v1/models").json()["data"]
    return (
        bool(entries)
        and all(one["ready"] for one in entries)
        and httpx2.post(f"{url}/v1/detect/survey").status_code != 404
    )


def test_a_survey_is_a_map_whose_markers_lead_to_pictures(page, tmp_path):
    for number in range(3):
        (tmp_path / f"{number}.jpg").write_bytes(photograph(50 + number * 0.0004, 8, number))
    page.goto("/console/detect")
    page.get_by_role("link", name="Make a survey").click()
    page.get_by_label("Photos", exact=True).set_input_files([tmp_path / f"{number}.jpg" for number in range(3)])
    page.get_by_role("button", name="Survey", exact=True).click()
    page.locator("fovea-survey [data-part=result]").wait_for(timeout=60_000)
    assert figure(page.locator("fovea-survey"), "road") == "0.09 km"
    link = page.locator("[data-part=map] svg a").first
    target = page.locator(link.get_attribute("href"))
    assert target.locator("img").evaluate("image => image.decode().then(() => image.naturalWidth)") > 100
    with page.expect_download() as waiting:
        page.get_by_role("button", name="GeoJSON").click()
    assert '"FeatureCollection"' in Path(waiting.value.path()).read_text()
    with page.expect_download() as waiting:
        page.get_by_role("button", name="Everything").click()
    with zipfile.ZipFile(waiting.value.path()) as archive:
        assert sum(name.startswith("pictures/") for name in archive.namelist()) == 3


def test_damage_without_a_place_is_not_reported_as_nothing(page, tmp_path):
    (tmp_path / "plain.jpg").write_bytes(Yolo9trBoxDetector.sample.read_bytes())
    page.goto("/console/survey")
    page.get_by_label("Photos", exact=True).set_input_files(tmp_path / "plain.jpg")
    page.get_by_role("button", name="Survey", exact=True).click()
    page.locator("fovea-survey [data-part=result]").wait_for(timeout=60_000)
    survey = page.locator("fovea-survey")
    assert figure(survey, "damage") == "none with a position"
    assert figure(survey, "not-placed")[0].isdigit()
    assert re.fullmatch(
        r"(\d+ \w+(, )?)+ in 1 photo; none has a position, so there is no map\.", figure(survey, "verdict")
    )
    assert not survey.locator("[data-part=map]").is_visible()
    assert survey.get_by_role("button", name="Add a GPX track").is_visible()
    lost = survey.locator("[data-part=pictures-lost] figure")
    assert lost.count() == 1
    survey.get_by_label("Minimum score").fill("1")
    lost.wait_for(state="hidden")
    assert figure(survey, "shown") == "0 of 1 photos"
    survey.get_by_text("Notes").click()
    page.get_by_text("plain.jpg: The file states no GPS position.").wait_for()


def test_another_merge_radius_counts_again_without_another_search(page, tmp_path):
    for number in range(3):
        (tmp_path / f"{number}.jpg").write_bytes(photograph(50 + number * 0.00005, 8, number))
    page.goto("/console/survey")
    page.get_by_label("Photos", exact=True).set_input_files([tmp_path / f"{number}.jpg" for number in range(3)])
    page.get_by_role("button", name="Survey", exact=True).click()
    page.locator("fovea-survey [data-part=result]").wait_for(timeout=60_000)
    survey = page.locator("fovea-survey")
    apart = figure(survey, "damage")
    page.get_by_label("Merge duplicates within (m)").fill("100")
    page.get_by_label("Merge duplicates within (m)").blur()
    page.wait_for_function("before => document.querySelector('[data-part=damage]').textContent !== before", arg=apart)
    assert sum(map(int, re.findall(r"\d+", figure(survey, "damage")))) < sum(map(int, re.findall(r"\d+", apart)))
