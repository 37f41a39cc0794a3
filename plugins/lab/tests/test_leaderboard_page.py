"""The page Leaderboard: what it offers, and that its module imports what the console has."""

import json
import re
from pathlib import Path
from urllib.parse import urljoin

import httpx2
import pytest

from fovea_lab.leaderboard import PAGE
from services.gateway.tests.browsing import MARKS, check_page
from services.gateway.tests.conftest import stage, url  # noqa: F401  # fixtures
from services.gateway.tests.test_console_pages import Sound


@pytest.fixture(scope="module")
def site(stage):  # noqa: F811
    with httpx2.Client(base_url=stage.url) as client:
        yield client


def test_it_offers_models_methods_tasks_and_documented_results_and_imports_modules_of_the_console(site):
    text = site.get("/console/leaderboard").text
    sound = Sound(text)
    choices = set(re.findall(r'<option>([^<]+)|type="checkbox" name="\w+" value="([^"]+)"', text))
    assert {("parrot", ""), ("", "nearby"), ("", "niah_single_1")} <= choices
    assert not {("", "dense"), ("", "qa_1")} & choices
    assert not sound.all("style")
    assert '<a href="/console/leaderboard"' in site.get("/").text
    place = "/console/static/plugins/leaderboard/leaderboard.js"
    text = site.get(place).text
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function", text)
    names = re.findall(r'from "([^"]+)"', text)
    assert names
    assert {site.get(urljoin(place, name)).status_code for name in names} == {200}
    documented = (Path(__file__).parents[3] / "docs/leaderboard.md").read_text("utf8")
    for row in committed()["leaderboards"]:
        told = rf"(?m)^\| {re.escape(row['method'])} \| {row['bytes']:.3f} .*\| {row['mean']:.2f} \|"
        assert re.search(told, documented)


def committed():
    return json.loads((PAGE.folder / "static/results.json").read_text("utf8"))


@MARKS[0]
@MARKS[1]
def test_it_opens_with_committed_results_that_are_searched_and_sorted(page, see):
    page.goto("/console/leaderboard")
    see(page.locator("[data-part=statement]")).to_contain_text("At 0.125 of dense’s bytes, kvzip does best")
    see(page.locator("[data-part=about]")).to_contain_text("Committed results: SmolLM2-135M-Instruct, 1,024 tokens")
    names = [row["method"] for row in committed()["leaderboards"] if row["informative"]]
    rows = page.locator("tbody tr:visible")
    assert rows.count() == len(names) > 40
    page.get_by_label("Search").fill("kvzip")
    see(rows).to_have_count(sum("kvzip" in name for name in names))
    page.get_by_role("button", name="All or none").first.click()
    see(page.get_by_label("nearby")).to_be_checked()
    check_page(page)
