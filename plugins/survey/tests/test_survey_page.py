"""The console's page of a road survey in a real browser: a map with figures."""

import json
import re
import zipfile
from pathlib import Path

from playwright.sync_api import expect

from plugins.survey.tests.test_survey import PAVEMENT, photograph
from services.gateway.tests.browsing import MARKS, check_page, figure
from tests.harness.waiting import wait_until

pytestmark = MARKS


def test_a_survey_is_a_map_whose_markers_lead_to_pictures(page, tmp_path):
    for number in range(3):
        (tmp_path / f"{number}.jpg").write_bytes(photograph(50 + number * 0.0004, 8, number))
    page.goto("/console/detect")
    page.get_by_role("link", name="Make a survey").click()
    page.get_by_label("Photos", exact=True).set_input_files([tmp_path / f"{number}.jpg" for number in range(3)])
    page.get_by_role("button", name="Survey", exact=True).click()
    page.locator("fovea-survey [data-part=result]").wait_for(timeout=60_000)
    assert figure(page.locator("fovea-survey"), "road") == "0.09 km"
    link = page.locator("fovea-survey [data-part=map] svg a").first
    target = page.locator(link.get_attribute("href"))
    assert target.locator("img").evaluate("image => image.decode().then(() => image.naturalWidth)") > 100
    target.hover()
    assert link.get_attribute("data-marked") is not None
    check_page(page)
    page.set_viewport_size({"width": 1280, "height": 900})
    with page.expect_download() as waiting:
        page.get_by_role("button", name="GeoJSON").click()
    assert '"FeatureCollection"' in Path(waiting.value.path()).read_text()
    with page.expect_download() as waiting:
        page.get_by_role("button", name="Everything").click()
    with zipfile.ZipFile(waiting.value.path()) as archive:
        assert sum(name.startswith("pictures/") for name in archive.namelist()) == 3


def run_survey(page, *photos):
    page.goto("/console/survey")
    page.get_by_label("Photos", exact=True).set_input_files([*photos])
    page.get_by_role("button", name="Survey", exact=True).click()
    page.locator("fovea-survey [data-part=result]").wait_for(timeout=60_000)
    return page.locator("fovea-survey")


def test_damage_without_a_place_is_not_reported_as_nothing(page, tmp_path):
    (tmp_path / "plain.jpg").write_bytes(PAVEMENT.read_bytes())
    survey = run_survey(page, tmp_path / "plain.jpg")
    assert figure(survey, "damage") == "none with a position"
    assert figure(survey, "not-placed")[0].isdigit()
    told = r"(\d+ \w+(, )?)+ in 1 photo; none has a position, so there is no map\."
    assert re.fullmatch(told, figure(survey, "verdict"))
    assert not survey.locator("[data-part=map]").is_visible()
    assert survey.get_by_role("button", name="Add a GPX track").is_visible()
    lost = survey.locator("[data-part=pictures-lost] figure")
    assert lost.count() == 1
    survey.get_by_label("Minimum score").fill("1")
    lost.wait_for(state="hidden")
    assert figure(survey, "shown") == "0 of 1 photos"
    survey.get_by_text("Notes").click()
    page.get_by_text("plain.jpg: The file states no GPS position.").wait_for()


def damage(label, north_m, severity, name):
    properties = {"kind": "damage", "label": label, "severity": severity, "size": 0.02, "pictures": [name]}
    point = {"type": "Point", "coordinates": [8.0, 50 + north_m / 111_195]}
    return {"type": "Feature", "geometry": point, "properties": properties}


def test_two_surveys_are_compared_on_a_map_where_there_is_one_in_a_table_and_as_csv(page, tmp_path):
    lost = {"type": "Feature", "geometry": None, "properties": {"kind": "damage", "label": "crack"}}
    surveys = {
        "earlier": [("crack", 0, "low", "a"), ("crack", 100, "medium", "b"), ("hole", 200, "high", "c")],
        "later": [("crack", 4, "high", "d"), ("crack", 112, "medium", "e"), ("crack", 201, "low", "f")],
    }  # fmt: skip
    page.goto("/console/survey")
    part = page.locator("fovea-survey-compare")
    for side, found in surveys.items():
        features = [damage(*one) for one in found] + [lost] * (side == "later")
        file = tmp_path / f"{side}.geojson"
        file.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
        part.get_by_label(f"{side.title()} survey", exact=True).select_option("file")
        part.get_by_label(f"{side.title()} survey: file").set_input_files(file)
    verdict = part.locator("[data-part=verdict]")
    verdict.get_by_text("1 worse").wait_for()
    told = "2 new, 1 worse, 0 unchanged, 0 better, 2 gone, within 10 m. 1 without a position is left out."
    assert verdict.inner_text() == told
    part.get_by_label("Match within").fill("15")
    assert verdict.inner_text().startswith("1 new, 1 worse, 1 unchanged, 0 better, 1 gone, within 15 m.")
    assert part.locator("circle").count() == 4
    check_page(page)
    part.get_by_label("Change", exact=True).select_option("worse")
    row = part.locator("tbody tr")
    assert row.locator("td").all_inner_texts() == ["crack", "50.00004, 8.00000", "low", "high", "4.0 m", "d"]
    row.hover()
    assert part.locator("circle").get_attribute("data-marked") is not None
    part.locator("[data-part=save]").scroll_into_view_if_needed()
    with page.expect_download() as waiting:
        part.get_by_role("button", name="CSV").click()
    lines = Path(waiting.value.path()).read_text().splitlines()
    assert lines[1].startswith("worse,crack,50.0000")
    assert lines[1].endswith(",4.0,low,high,0.02,0.02,a,d")
    (tmp_path / "wrong.json").write_text("[]")
    part.get_by_label("Earlier survey: file").set_input_files(tmp_path / "wrong.json")
    part.get_by_text("wrong.json is not a survey.").wait_for()
    assert verdict.is_hidden()  # it was of the other file
    (tmp_path / "lost.json").write_text(json.dumps({"type": "FeatureCollection", "features": [lost]}))
    for side in surveys:
        part.get_by_label(f"{side.title()} survey: file").set_input_files(tmp_path / "lost.json")
    for choice in ("", "file"):  # a file that was chosen is still there
        part.get_by_label("Later survey", exact=True).select_option(choice)
    verdict.get_by_text("2 without a position are left out.").wait_for()
    assert part.locator("[data-part=map] svg").count() == 0


def test_another_merge_radius_counts_again_without_another_search(page, tmp_path):
    for number in range(2):
        (tmp_path / f"{number}.jpg").write_bytes(photograph(50 + number * 0.00005, 8, number))
    survey = run_survey(page, *(tmp_path / f"{number}.jpg" for number in range(2)))
    apart = figure(survey, "damage")
    held = []
    page.route("**/v1/detect/survey", lambda route: held.append(route) or (len(held) > 1 and route.continue_()))
    page.get_by_label("Merge duplicates within (m)").fill("90")
    wait_until(lambda: page.wait_for_timeout(20) or held, 10, "the request")
    with page.expect_response("**/v1/detect/survey"):
        page.get_by_label("Merge duplicates within (m)").fill("3.5")
    with page.expect_response("**/v1/detect/survey"):
        held[0].continue_()  # the answer to the radius before comes last
    page.wait_for_timeout(200)
    assert figure(survey, "damage") == apart
    page.get_by_label("Merge duplicates within (m)").fill("100")
    expect(survey.locator("[data-part=damage]")).not_to_have_text(apart)
    assert sum(map(int, re.findall(r"\d+", figure(survey, "damage")))) < sum(map(int, re.findall(r"\d+", apart)))


def test_a_survey_whose_map_fails_shows_all_the_rest(page, tmp_path, complaints):
    (tmp_path / "0.jpg").write_bytes(photograph(50, 8, 0))

    def fail(route):
        if "svg" in route.request.headers["accept"]:
            route.fulfill(status=503, json={"title": "Not ready", "detail": "No map now."})
        else:
            route.continue_()

    page.route("**/v1/detect/survey", fail)
    survey = run_survey(page, tmp_path / "0.jpg")
    expect(survey.get_by_role("alert")).to_contain_text("No map now.")
    assert survey.locator("[data-part=pictures] figure").count() == 1
    complaints.clear()
