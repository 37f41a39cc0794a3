"""The console's page for probes in a real browser, before the real service: forms, pictures, permalinks, the loop."""

import json
from urllib.parse import quote

import pytest

from services.gateway.tests.browsing import MARKS, kept
from services.gateway.tests.stage import fronted
from services.interpretability.core.experiment import EXAMPLE_LM
from services.interpretability.routes import build_router
from shared.registry import servables
from shared.serving.build_app import build
from shared.settings import Settings

QUEUED = {
    "id": "j", "status": "queued", "progress": 0, "created": "2026-01-01T00:00:00Z", "service": "interpretability",
    "path": "/v1/probe",
}  # fmt: skip

pytestmark = [*MARKS]


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    found = servables("interpretability")
    app = build(
        "interpretability",
        routers=[build_router(found)],
        servables=found,
        settings=Settings(data_dir=folder, intra_op_threads=1),
    )
    with fronted(app, "interpretability", folder) as (address, *_):
        yield address


@pytest.fixture(autouse=True)
def _patient(page):
    page.set_default_timeout(30_000)


def spec_page(model, **spec):
    return f"/console/probe?model={model}&spec={quote(json.dumps(spec))}"


def test_permalink_of_one_forward_runs_and_draws_without_a_complaint(page):
    page.goto(spec_page("attention", lm="tiny", text="kqzwxm kqzwx", layers=[1], heads=[2]))
    page.locator(".report svg").first.wait_for()
    assert page.locator(".report h2").inner_text() == "Attention"
    assert page.locator(".report svg title").first.text_content()
    assert page.locator("#option-text").input_value() == "kqzwxm kqzwx"


def test_a_figure_tells_its_values_and_is_saved_as_a_picture(page):
    page.goto(spec_page("attention", lm="tiny", text="kqzwxm kqzwx", layers=[1], heads=[2]))
    cell = page.locator(".report svg g:has(> title), .report svg rect:has(> title), .report svg a:has(> title)").first
    cell.wait_for()
    words = cell.locator("> title").first.text_content()
    cell.dispatch_event("pointerover")
    assert page.locator(".figure-tools output").first.inner_text().strip() == words.strip()
    assert kept(page, "figure 1 as SVG", "figure-1.svg").startswith(b"<svg")
    assert kept(page, "figure 1 as PNG", "figure-1.png").startswith(b"\x89PNG")


def test_click_on_a_head_shows_its_pattern_on_the_text(page):
    page.goto(spec_page("indicators", lm="tiny", text="kqzwxm kqzwxm"))
    page.locator(".report svg a").nth(5).click()
    page.wait_for_url("**/console/probe?model=attention*")
    page.locator(".report svg").first.wait_for()
    assert "1-1" in page.locator("[data-part=answer]").inner_text()


def test_spec_goes_into_the_address_and_comes_back(page):
    page.goto("/console/probe?model=attention-sinks")
    page.get_by_role("button", name="Use the example").click()
    page.get_by_role("button", name="Run", exact=True).click()
    page.locator(".report svg").first.wait_for()
    page.get_by_role("button", name="Permalink").click()
    page.reload()
    page.locator(".report svg").first.wait_for()
    assert "heron" in page.locator("#option-text").input_value()


def test_job_reports_and_offers_the_loop_where_there_is_a_plan(page):
    short = {"samples": 2, "pairs": 5, "shots": 2, "key_chars": 4, "value_words": 0}
    page.goto(spec_page("retrieval-heads", lm=EXAMPLE_LM, **short))
    page.get_by_role("button", name="Run", exact=True).click()
    page.locator(".report svg").first.wait_for(timeout=150_000)  # next to another worker
    page.get_by_role("heading", name="Use these heads").wait_for()
    asked = []
    page.route(
        "**/v1/probe",
        lambda route: (asked.append(route.request.post_data_json), route.fulfill(status=202, json=QUEUED)),
    )
    page.route(
        "**/v1/jobs/j/events",
        lambda route: route.fulfill(
            content_type="text/event-stream", body='data: {"id":"j","status":"succeeded","progress":1}\n\n'
        ),
    )
    page.route(
        "**/v1/jobs/j/result",
        lambda route: route.fulfill(content_type="text/html", body="<main><h1>Needle grid</h1><p>recall</p></main>"),
    )
    page.get_by_role("button", name="Needle grid with these heads").click()
    page.get_by_role("heading", name="Needle grid with duo").wait_for()
    assert page.locator("[data-part=loop] [data-part=progress]").count() == 1, "how far it is stands next to the button"
    assert [request["longctx"]["method"] for request in asked] == ["dense", "duo"]
    assert asked[1]["longctx"]["plan"]["schema"] == "head-plan/1"


def test_refusal_is_told_in_words(page, complaints):
    page.goto(spec_page("attention-sinks", lm="tiny", text="short"))
    page.get_by_text("below 16").wait_for()
    complaints.clear()  # the browser notes the 422


def test_broken_permalink_is_a_page_that_says_so(page, complaints):
    page.goto("/console/probe?model=attention&spec=nonsense")
    page.get_by_text("not a JSON object").wait_for()
    complaints.clear()


def test_report_fits_a_narrow_screen(page):
    page.set_viewport_size({"width": 360, "height": 780})
    page.goto(spec_page("head-patterns", lm="tiny", half=12))
    page.locator(".report svg").first.wait_for()
    assert page.locator("html").evaluate("element => element.scrollWidth") <= 360
