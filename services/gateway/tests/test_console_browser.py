"""Pages of the console in a real browser: policy, readiness, jobs, keys, options of every kind, help and limits."""

import json
import re

import httpx2
import pytest

from services.gateway.tests.browsing import (
    MARKS,
    PICTURE,
    check_page,
    choose,
    hasten,
    hold,
    kept,
    open_with_picture,
    run_judge,
    submit,
    watched,
)
from services.gateway.tests.stage import running
from services.gateway.tests.stub_service import photograph
from tests.harness.waiting import wait_until

pytestmark = MARKS


@pytest.fixture
def page(page):
    return hasten(page)


def test_a_page_of_ours_cannot_run_what_is_not_ours(page, complaints):
    page.goto("/")
    page.locator("main").evaluate(
        """main => {
            const script = document.createElement('script');
            script.textContent = 'document.title = "broken in"';
            main.append(script);
            const picture = new Image();
            picture.src = 'https://example.org/spy.png';
            main.append(picture);
        }"""
    )
    while len(complaints) < 2:  # the test's own time limit ends it
        page.wait_for_event("console")
    assert (page.title(), all("Content Security Policy" in said for said in complaints)) == ("Home · Fovea", True)
    complaints.clear()


def test_a_job_is_seen_moving_cancelled_and_retried_until_its_result_can_be_opened(page, stage, see):
    stage.queue.last_step = 3
    page.goto("/console/jobs")
    job = submit(stage)
    row = page.locator(f'[data-job="{job}"]')
    row.wait_for()
    see(row).to_contain_text("Running")
    see(row).to_contain_text("step 3 of 5 · 60 %")
    row.get_by_role("button", name="Cancel").click()
    see(row).to_contain_text("Cancelled")
    stage.queue.last_step = 4
    row.get_by_role("button", name="Retry").click()
    see(row).to_contain_text("Succeeded")
    row.get_by_role("button", name="Result").click()
    see(row.locator("fovea-result img")).to_be_visible()
    see(row.locator("fovea-result")).to_contain_text("area percent")
    kept(row, "Download", f"{job}.json")


def test_a_model_without_a_page_of_its_own_is_run_from_its_schema(page, stage, see):
    asked = len(stage.stub.seen)
    page.goto("/console/run/classify")
    page.get_by_role("button", name="Run", exact=True).click()
    assert page.locator("#option-image").evaluate("input => input.validity.valueMissing")
    assert len(stage.stub.seen) == asked
    page.locator("#option-image").set_input_files(PICTURE)
    page.locator("#option-top_k").fill("2")
    page.get_by_role("button", name="Run", exact=True).click()
    see(page.locator("fovea-result tbody tr")).to_have_count(2)
    assert stage.stub.seen[-1]["options"] == {"model": "patches/tiny", "top_k": 2}
    assert json.loads(kept(page, "Download the answer", "patches-tiny.json"))["model"] == "patches/tiny"


def test_with_keys_the_tab_asks_once_and_keeps_the_key_to_itself(chromium, tmp_path, see):
    with running(tmp_path, auth="keys") as locked:
        _, text = locked.keys.add("lab", ("infer", "jobs"))
        page = chromium.new_context(base_url=locked.url).new_page()
        page.goto("/console/segment")
        page.locator("#key").fill("fovea_wrong")
        page.get_by_role("button", name="Continue").click()
        see(page.get_by_role("alert").first).to_have_text("The gateway does not accept this key.")
        page.locator("#key").fill(text)
        page.get_by_role("button", name="Continue").click()
        page.get_by_role("button", name="Use the model’s example").click()
        page.locator("[data-part=result]").wait_for()
        page.get_by_role("link", name="Chat").click()
        page.locator("#message").fill("hello")
        page.keyboard.press("Enter")
        see(page.locator(".turn").nth(1)).to_contain_text("You said: hello")
        page.goto("/console/jobs")
        see(page.get_by_role("heading", name="No jobs yet")).to_be_visible()
        other = page.context.new_page()
        other.goto(f"{locked.url}/")
        see(other.locator("#key")).to_be_visible()
        other.close()  # a page behind another draws a frame a second
        page.get_by_role("button", name="Account").click()
        facts = page.locator("#account dl")
        for words in ("lab", "infer, jobs", re.compile(r"\d+ of 600 requests per minute")):
            see(facts).to_contain_text(words)
        check_page(page)
        page.get_by_role("button", name="Forget key").click()
        see(page.locator("#key")).to_be_visible()
        page.context.close()


def test_every_kind_of_option_reaches_the_model_with_its_type_and_an_answer_of_any_shape_is_shown(page, stage, see):
    asked = len(stage.stub.seen)
    page.goto("/console/run/judge")
    for name, value in (("prompt", "Is it near?"), ("share", "0.75"), ("count", "7")):
        page.locator(f"#option-{name}").fill(value)
    page.locator("#option-flag").uncheck()
    page.locator("#option-mode").select_option(label="slow")
    page.get_by_label("box").check()
    page.get_by_label("mask").uncheck()
    page.get_by_text("more options").click()
    for name, value in (("names", "a, b c ,"), ("ids", "4, 5"), ("where", "{nope")):
        page.locator(f"#option-{name}").fill(value)
    page.get_by_role("button", name="Run", exact=True).click()
    see(page.get_by_role("alert")).to_contain_text("“where” is not JSON")
    assert len(stage.stub.seen) == asked
    page.locator("#option-where").fill('{"x": 3, "y": 4}')
    page.get_by_role("button", name="Run", exact=True).click()
    answer = page.locator("fovea-result")
    see(answer.locator("figure img")).to_have_js_property("naturalWidth", 64)
    assert stage.stub.seen[-1] == {
        "model": "sink", "prompt": "Is it near?", "share": 0.75, "count": 7, "flag": False, "mode": "slow",
        "forms": ["box"], "names": ["a", "b c"], "ids": [4, 5], "where": {"x": 3, "y": 4},
    }  # fmt: skip
    see(answer.locator("dl").first).to_contain_text("0.1235")
    see(answer.locator("dl").first).to_contain_text("<i>text</i>")
    see(answer.locator("tbody tr")).to_have_count(2)
    see(answer.locator("tbody td").nth(2)).to_have_text("–")
    see(answer.locator("tbody")).to_contain_text("<b>far</b>")
    answer.get_by_text("JSON").click()
    see(answer.locator("pre")).to_contain_text('"score": 0.123456')
    grid = [list(range(400)) for _ in range(400)]
    told = {"grid": grid, "whole": 123456.75, "small": 1e-7, "zero": -0.0, "rows": [{"n": 98765.4}]}
    page.route("**/v1/judge", lambda route: route.fulfill(json=told))
    page.get_by_role("button", name="Run", exact=True).click()
    see(answer.locator("figcaption")).to_have_text("grid, 0 to 399")
    see(answer.locator("dl")).to_have_text("whole123456.8small1.000e-7zero0")
    see(answer.locator("td")).to_have_text("98765.4")


def test_buttons_are_shown_once_their_script_is_there_and_send_once_the_example_is(page, see):
    held, examples = hold(page, "**/run.js*"), hold(page, "**/example")
    go, example = page.locator("[data-part=go]"), page.locator("[data-part=example]")
    page.goto("/console/run/judge", wait_until="commit")
    see(page.locator("#option-prompt")).to_be_visible()
    see(go).to_be_hidden()
    see(example).to_be_hidden()
    held.pop().continue_()
    see(go).to_be_enabled()
    example.click()
    see(go).to_be_disabled()
    examples.pop().fulfill(json={"model": "judge", "prompt": "a heron"})
    see(go).to_be_enabled()
    see(page.locator("#option-prompt")).to_have_value("a heron")


def test_events_are_read_whole_however_they_are_cut(page):
    page.goto("/")
    found = page.evaluate(
        """async () => {
            const { events } = await import('/console/static/js/gateway.js');
            const text = ': hello\\n\\nevent: x\\ndata: {"a":\\ndata: "é"}\\r\\n\\r\\n'
                + 'id: 1\\n\\ndata:last\\n\\ndata: lost';
            const bytes = new TextEncoder().encode(text);
            const found = [];
            for (const size of [1, 2, 3, 7, bytes.length]) {
                const stream = new ReadableStream({ start(controller) {
                    for (let at = 0; at < bytes.length; at += size) controller.enqueue(bytes.slice(at, at + size));
                    controller.close();
                } });
                const read = [];
                for await (const data of events(new Response(stream))) read.push(data);
                found.push(read);
            }
            return found;
        }"""
    )
    assert found == [['{"a":\n"é"}', "last"]] * 5


def test_help_is_behind_a_question_mark_the_button_in_view_and_on_a_phone_the_progress(page, see):
    page.set_viewport_size({"width": 1280, "height": 620})
    page.goto("/console/run/judge")
    help_ = page.locator("details.hint").first
    see(help_.locator("p")).to_be_hidden()
    described = f"[aria-describedby='{help_.locator('p').get_attribute('id')}']"
    see(page.locator(described)).to_have_count(1)  # its reader hears it also while it is closed
    see(page.locator("[data-part=go]").first).to_be_in_viewport(ratio=1)
    help_.locator("summary").click()
    see(help_.locator("p")).to_be_visible()
    page.set_viewport_size({"width": 390, "height": 700})
    open_with_picture(page)
    page.get_by_role("link", name="Options").click()
    see(page.get_by_role("form", name="Options")).to_be_in_viewport()
    page.route("**/v1/segment", lambda _: None)
    page.get_by_role("button", name="Segment", exact=True).click()
    see(page.locator("[data-part=progress]")).to_be_in_viewport()


def test_the_title_of_the_tab_and_the_place_in_the_queue_follow_a_request(chromium, stage, see):
    with watched(chromium, stage.url, []) as page:  # whose clock goes with it
        busy = {"stub": {"ready": 1, "alive": 1, "requests": 3}}
        ready = {"services": busy, "not_ready": [], "reasons": {}, "redis": "off"}
        page.route("**/readyz", lambda route: route.fulfill(json=ready))
        page.clock.install()
        page.goto("/console/segment")
        announced = "node => node.closest('[aria-live]').getAttribute('aria-live')"
        assert page.locator("[data-part=progress-elapsed]").evaluate(announced) == "off"
        page.route("**/v1/segment", lambda _: None)
        choose(page)
        see(page).to_have_title("… Segment · Fovea")
        page.clock.run_for(3500)
        see(page.locator("[data-part=progress-elapsed]")).to_contain_text(re.compile(r"\d s.*· 2 other requests"))
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


def test_front_page_and_page_of_models_follow_readiness_in_place_and_a_page_links_to_itself(page, stage, see):
    page.goto("/")
    words = page.locator("fovea-readiness")
    before = words.inner_text()
    page.evaluate("document.querySelector('main').dataset.same = 'yes'")
    page.get_by_role("link", name="All models").focus()
    page.evaluate("scrollTo(0, 200)")
    stage.stub.cards["disc"]["ready"] = False
    try:
        see(words).not_to_have_text(before)
    finally:
        stage.stub.cards["disc"]["ready"] = True
    assert page.locator("main").get_attribute("data-same") == "yes"
    assert page.evaluate("[scrollY, document.activeElement.textContent.trim()]") == [200, "All models"]
    for name in ("Fovea, home", "Home"):
        see(page.get_by_role("link", name=name, exact=True)).to_have_attribute("aria-current", "page")
    page.goto("/console/models")
    assert page.locator("#menu [aria-current=page]").all_inner_texts() == ["Models"]
    place = page.locator('[data-model="disc-large"]')
    see(place).to_have_text("Not ready")
    stage.stub.cards["disc-large"]["ready"] = True
    try:
        see(place).to_have_text("Ready")
    finally:
        stage.stub.cards["disc-large"]["ready"] = False


def test_stop_also_ends_a_job_whose_number_has_not_come_yet(page, stage, see):
    held = hold(page, "**/v1/judge")
    run_judge(page, as_job=True)
    see(page.get_by_role("button", name="Stop")).to_be_visible()
    wait_until(lambda: page.wait_for_timeout(20) or held, 10, "the request")
    page.get_by_role("button", name="Stop").click()
    with page.expect_request("**/v1/jobs/*/cancel"):
        held.pop().continue_()
    see(page.get_by_role("alert")).to_be_hidden()
    page.unroute("**/v1/judge")
    page.locator("#as-job").uncheck()
    page.evaluate("addEventListener('fovea-run-stored', ({ detail }) => (window.stored = detail))")
    page.get_by_role("button", name="Run", exact=True).click()
    wait_until(lambda: page.wait_for_timeout(20) or page.evaluate("window.stored"), 10, "the run")
    assert page.evaluate("window.stored.job ?? null") is None


def test_a_job_is_followed_through_a_break_of_the_connection(page, stage, see, complaints):
    breaks = []
    page.route("**/events", lambda route: route.continue_() if len(breaks) > 1 else (breaks.append(1), route.abort()))
    run_judge(page, as_job=True)
    see(page.locator("fovea-result")).to_contain_text("0.1235", timeout=10_000)
    see(page.get_by_role("alert")).to_be_hidden()
    assert len(breaks) == 2
    complaints.clear()
    stage.queue.last_step = 1
    run_judge(page, as_job=True)
    see(page.locator("[data-part=progress]")).to_contain_text("step 1 of 5")
    httpx2.post(f"{stage.url}/v1/jobs/{next(reversed(stage.queue.jobs))}/cancel").raise_for_status()
    stage.queue.last_step = 4
    see(page.get_by_role("alert")).to_contain_text("The job was cancelled on another page")


def test_of_two_choices_of_a_model_the_last_counts_with_its_example_and_failures_are_undone(
    page, stage, see, complaints
):
    page.goto("/console/segment?model=disc")
    model = page.locator("#model")
    held = hold(page, "**/console/segment?model=disc-large")
    model.select_option("disc-large")
    see(page.locator("[data-part=go]")).to_be_disabled()
    wait_until(lambda: page.wait_for_timeout(20) or held, 10, "the page")
    model.select_option("disc")
    page.wait_for_timeout(500)
    held.pop().continue_()
    page.wait_for_timeout(500)
    see(model).to_have_value("disc")
    assert page.url.endswith("model=disc")
    page.unroute("**/console/segment?model=disc-large")
    page.route("**/console/segment?model=disc-large", lambda route: route.fulfill(status=503, body="<h1>Starting</h1>"))
    model.select_option("disc-large")
    see(page.get_by_role("alert")).to_contain_text("Try again in a few seconds.")
    see(model).to_have_value("disc")
    complaints.clear()
    held = hold(page, "**/disc/example")
    page.goto("/console/run/segment?model=disc")
    page.get_by_role("button", name="Use the example").click()
    wait_until(lambda: page.wait_for_timeout(20) or held, 10, "the example")
    page.locator("#model").select_option("disc-large")
    page.wait_for_url("**model=disc-large")
    held.pop().fulfill(json={"model": "disc", "min_area": 99})
    page.wait_for_timeout(300)
    see(page.locator("#option-min_area")).to_have_value("0")


def test_a_double_click_on_run_does_not_stop_it_and_keys_find_the_button_again(page, see):
    held = hold(page, "**/v1/judge")
    page.goto("/console/run/judge")
    page.locator("#option-prompt").fill("x")
    go, stop = page.locator("[data-part=go]"), page.get_by_role("button", name="Stop")
    go.dblclick()
    wait_until(lambda: page.wait_for_timeout(20) or held, 10, "the request")
    see(stop).to_be_visible()
    held.pop().continue_()
    see(page.locator("fovea-result")).to_contain_text("0.1235")
    page.locator("#option-prompt").focus()
    while not go.evaluate("button => button === document.activeElement"):
        page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    see(stop).to_be_focused()
    wait_until(lambda: page.wait_for_timeout(20) or held, 10, "the request")
    held.pop().continue_()
    see(go).to_be_focused()


def test_a_stored_answer_that_comes_late_does_not_replace_a_newer_one(page, stage, see):
    job = submit(stage, "/v1/judge", json={"prompt": "old"})
    wait_until(lambda: stage.queue.jobs[job].finished, 10, "the job")
    held = hold(page, f"**/v1/jobs/{job}/result")
    page.goto(f"/console/run/judge?job={job}")
    page.locator("#option-prompt").fill("new")
    page.get_by_role("button", name="Run", exact=True).click()
    see(page.locator("fovea-result")).to_contain_text("new")
    held.pop().continue_()
    page.wait_for_timeout(500)
    see(page.locator("fovea-result")).to_contain_text("new")
    see(page.locator("#option-prompt")).to_have_value("new")


def test_an_option_that_is_not_valid_is_shown_where_it_is_closed_in(page, see, complaints):
    page.goto("/console/admin#keys")
    page.get_by_text("New key").click()
    page.locator("#new-tenant").fill("lab")
    page.get_by_text("Limits and expiry").click()
    page.locator("#new-weight").fill("500")
    page.get_by_text("Limits and expiry").click()
    see(page.locator("#new-weight")).to_be_hidden()
    page.get_by_role("button", name="Make a key").click()
    see(page.locator("#new-weight")).to_be_focused()
    complaints.clear()  # nobody may read keys here


def test_two_tabs_of_running_jobs_leave_connections_for_others(page, stage, see):
    stage.queue.last_step = 2
    jobs = [submit(stage) for _ in range(4)]
    for tab in (page, page.context.new_page()):
        tab.goto("/console/jobs")
        see(tab.locator(f'[data-job="{jobs[-1]}"]')).to_contain_text("40 %")
    page.context.new_page().goto("/console/chat", timeout=10_000)
    stage.queue.last_step = 4


def test_the_limits_and_words_of_a_page_are_those_of_the_model_that_is_chosen(page, stage, see, monkeypatch):
    small = {"ready": True, "limits": {"max_pixels": 1_000_000}, "summary": "Takes small images."}
    monkeypatch.setitem(stage.stub.cards, "disc-large", stage.stub.cards["disc-large"] | small)
    page.goto("/console/segment")
    page.locator("fovea-model select").select_option("disc-large")
    see(page.get_by_text("Takes small images.")).to_be_visible()
    see(page.locator("fovea-drop")).to_contain_text("up to 1 megapixels")
    asked = len(stage.stub.seen)
    choose(page, {"name": "b.jpg", "mimeType": "image/jpeg", "buffer": photograph(1200, 900)})
    see(page.get_by_role("alert")).to_contain_text("this model accepts at most 1.0 MP")
    assert len(stage.stub.seen) == asked
