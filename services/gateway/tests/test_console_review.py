"""Findings of a review of the console that no other test holds: help, the button that runs, warnings, limits."""

import pytest

from services.gateway.tests.browsing import MARKS, PICTURE, choose, open_with_picture
from services.gateway.tests.stage import running
from services.gateway.tests.stub_service import photograph

pytestmark = MARKS


@pytest.mark.parametrize("place", ["/console/segment", "/console/classify", "/console/run/judge"])
def test_help_is_behind_a_question_mark_and_the_button_that_runs_is_in_view(page, see, place):
    page.set_viewport_size({"width": 1280, "height": 620})
    page.goto(place)
    help_ = page.locator("details.hint").first
    see(help_.locator("p")).to_be_hidden()
    control = page.locator(f"[aria-describedby='{help_.locator('p').get_attribute('id')}']")
    see(control).to_have_count(1)  # its reader hears it also while it is closed
    see(page.locator("[data-part=go]").first).to_be_in_viewport(ratio=1)
    help_.locator("summary").click()
    see(help_.locator("p")).to_be_visible()


def test_running_from_a_phone_brings_the_progress_into_view(page, see):
    page.set_viewport_size({"width": 390, "height": 700})
    open_with_picture(page)
    page.get_by_role("link", name="Options").click()
    see(page.get_by_role("form", name="Options")).to_be_in_viewport()
    page.route("**/v1/segment", lambda _: None)
    page.get_by_role("button", name="Segment", exact=True).click()
    see(page.locator("[data-part=progress]")).to_be_in_viewport()


def test_the_title_of_the_tab_and_the_place_in_the_queue_follow_a_request(page, see):
    busy = {"stub": {"ready": 1, "alive": 1, "requests": 3}}
    ready = {"services": busy, "not_ready": [], "reasons": {}, "redis": "off"}
    page.route("**/readyz", lambda route: route.fulfill(json=ready))
    page.goto("/console/segment")
    page.route("**/v1/segment", lambda _: None)
    choose(page)
    see(page).to_have_title("… Segment · Fovea")
    see(page.locator("[data-part=progress-elapsed]")).to_contain_text("2 s")
    see(page.locator("[data-part=progress-elapsed]")).to_contain_text("· 2 other requests")
    page.get_by_role("button", name="Stop").click()
    see(page).to_have_title("Segment · Fovea")
    see(page.locator("[data-part=progress]")).to_be_hidden()


def test_a_file_over_the_limit_is_refused_before_it_is_sent_and_the_next_one_clears_that(chromium, tmp_path, see):
    with running(tmp_path, max_body_bytes=20_000) as small:
        page = chromium.new_page(base_url=small.url)
        page.goto("/console/segment")
        choose(page, {**PICTURE, "buffer": photograph() + bytes(30_000)})
        alert = page.get_by_role("alert")
        see(alert).to_contain_text("at most 0.0 MB can be sent")
        assert "FOVEA_" not in alert.inner_text()
        assert not small.stub.seen
        choose(page)
        see(alert).to_be_hidden()
        page.locator("[data-part=result]").wait_for()
        page.close()


def test_the_front_page_follows_readiness_in_place_and_links_to_itself(page, stage, see):
    page.goto("/")
    words = page.locator("fovea-readiness")
    before = words.inner_text()
    page.evaluate("document.querySelector('main').dataset.same = 'yes'")
    page.get_by_role("link", name="All models").focus()
    page.evaluate("scrollTo(0, 200)")
    stage.stub.cards["disc"]["ready"] = False
    try:
        see(words).not_to_have_text(before, timeout=15_000)
    finally:
        stage.stub.cards["disc"]["ready"] = True
    assert page.locator("main").get_attribute("data-same") == "yes"
    assert page.evaluate("[scrollY, document.activeElement.textContent.trim()]") == [200, "All models"]
    for name in ("Fovea, home", "Home"):
        see(page.get_by_role("link", name=name, exact=True)).to_have_attribute("aria-current", "page")
    page.goto("/console/classify")
    assert page.locator("#menu [aria-current=page]").all_inner_texts() == ["Classify"]
