"""The page Leaderboard: what it offers, and that its module imports what the console has."""

import re
from urllib.parse import urljoin

import httpx2
import pytest

from services.gateway.tests.conftest import stage  # noqa: F401  # fixture
from services.gateway.tests.test_console_pages import Sound


@pytest.fixture(scope="module")
def site(stage):  # noqa: F811
    with httpx2.Client(base_url=stage.url) as client:
        yield client


def test_it_offers_models_methods_and_tasks_that_need_no_file(site):
    text = site.get("/console/leaderboard").text
    page = Sound(text)
    assert {"parrot", "nearby", "niah_single_1"} <= set(re.findall(r"<option ?(?:selected)?>([^<]+)", text))
    assert not {"dense", "qa_1"} & set(re.findall(r"<option ?(?:selected)?>([^<]+)", text))
    assert not page.all("style")
    assert '<a href="/console/leaderboard"' in site.get("/").text


def test_its_module_imports_modules_of_the_console(site):
    place = "/console/static/plugins/leaderboard/leaderboard.js"
    text = site.get(place).text
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function", text)
    names = re.findall(r'from "([^"]+)"', text)
    assert names
    assert {site.get(urljoin(place, name)).status_code for name in names} == {200}
