"""The frame of the console in a real browser: navigation, palette, theme, outage, accessibility, what a page weighs."""

import re
import subprocess
from unittest.mock import AsyncMock

import httpx2
import pytest

from fovea.errors import NotReady
from services.gateway.tests.browsing import (
    MARKS,
    PICTURE,
    check_page,
    choose,
    hasten,
    open_with_picture,
    run_judge,
    watched,
)
from services.gateway.tests.stage import running
from tests.harness.hypothesis_profiles import in_depth
from tests.harness.waiting import wait_until

pytestmark = MARKS

PLACES = (
    "/", "/runs", "/console/probe", "/console/models", "/console/models/disc", "/console/segment", "/console/chat",
    "/console/judge", "/console/jobs", "/console/classify", "/console/run/judge", "/console/nope", "/docs",
)  # fmt: skip
CHECKED = {"/console/probe", "/console/models", "/console/classify", "/console/jobs", "/console/segment"}
"""Pages, or their like, that tests of their own check with axe in each run."""


@pytest.fixture
def page(page):
    return hasten(page)


@pytest.mark.parametrize("place", in_depth(PLACES, {*PLACES} - CHECKED))
def test_axe_finds_nothing_nothing_is_wider_than_the_screen_and_focus_can_be_seen(page, complaints, place):
    page.set_viewport_size({"width": 360, "height": 844})
    page.goto(place)
    page.locator("h1").first.wait_for()
    check_page(page, 360, 1280)
    if place != "/docs":
        page.keyboard.press("Tab")
        assert page.locator(":focus").inner_text() == "Skip to content"
        page.keyboard.press("Tab")
        assert page.locator(":focus").evaluate("element => getComputedStyle(element).outlineStyle") == "solid"
    complaints[:] = [said for said in complaints if "404" not in said]


def test_every_page_is_in_the_navigation_also_on_a_phone(page, see):
    page.set_viewport_size({"width": 390, "height": 844})
    page.goto("/console/segment")
    menu = page.get_by_role("navigation", name="Pages")
    see(menu).to_be_hidden()
    page.get_by_role("button", name="Menu").click()
    names = {link.strip() for link in menu.get_by_role("link").all_inner_texts()}
    assert names >= {
        *["Home", "Segment", "Detect", "Restore", "Classify", "Chat", "Judge", "Probe", "Runs", "Jobs", "Models"]
    }
    see(menu.get_by_role("link", name="Segment")).to_have_attribute("aria-current", "page")
    menu.get_by_role("link", name="Classify").click()
    see(page.get_by_role("heading", level=1)).to_have_text("Classify")


def test_the_palette_finds_pages_and_models_by_their_words_and_the_theme_is_kept_and_drawn_by_the_server(page, see):
    page.goto("/")
    page.keyboard.press("Control+k")
    find = page.get_by_role("combobox", name="Find")
    see(find).to_be_focused()
    find.fill("patches")
    see(page.get_by_role("option").first).to_contain_text("patches/tiny")
    page.keyboard.press("Enter")
    page.wait_for_url("**/console/models/patches/tiny")
    page.keyboard.press("Control+k")
    find.fill("jobs")
    page.keyboard.press("Enter")
    page.wait_for_url("**/console/jobs")
    page.goto("/")
    ground = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(ground)
    page.get_by_role("button", name="Theme: system").click()
    page.get_by_role("button", name="Theme: light").click()
    dark = page.evaluate(ground)
    assert dark != light
    page.goto("/console/jobs")
    assert (page.locator("html").get_attribute("data-theme"), page.evaluate(ground)) == ("dark", dark)
    see(page.get_by_role("button", name="Theme: dark")).to_be_visible()


def test_a_first_visit_is_light_static_files_stay_in_the_browser_and_others_are_revalidated(chromium, stage):
    answers = []
    with watched(chromium, stage.url, []) as page:
        page.on("response", lambda answer: answers.append(answer))  # noqa: PLW0108 - Playwright marks what it is given
        page.goto("/", wait_until="networkidle")
        sizes = [answer.request.sizes()["responseBodySize"] for answer in answers]
    assert len(answers) <= 12, [answer.url for answer in answers]
    assert sum(sizes) <= 80_000
    static = [answer for answer in answers if "/console/static/" in answer.url]
    assert all("immutable" in answer.headers["cache-control"] for answer in static)
    texts = [answer for answer in static if answer.url.endswith((".js", ".css"))]
    assert {answer.headers["content-encoding"] for answer in texts} == {"gzip"}
    assert all(answer.url.startswith(stage.url) for answer in answers)
    url = f"{stage.url}/console/static/js/frame.js"
    answer = httpx2.get(url)
    assert answer.headers["cache-control"] == "no-cache"
    assert httpx2.get(url, headers={"if-none-match": answer.headers["etag"]}).status_code == 304


def test_without_a_network_a_banner_says_so_what_was_typed_stays_and_it_goes_by_itself(page, see, complaints):
    page.goto("/console/run/judge")
    page.locator("#option-prompt").fill("precious words")
    page.context.set_offline(True)
    page.get_by_role("button", name="Run", exact=True).click()
    banner = page.locator("fovea-outage")
    see(banner).to_contain_text("Can’t reach Fovea.")
    for words in ("Can’t reach Fovea.", "make run"):
        see(page.get_by_role("alert")).to_contain_text(words)
    page.context.set_offline(False)
    see(banner).to_be_hidden(timeout=15_000)
    page.get_by_role("alert").get_by_role("button", name="Try again").click()
    see(page.locator("fovea-result")).to_be_visible()
    see(page.locator("#option-prompt")).to_have_value("precious words")
    complaints.clear()


def test_during_an_outage_cards_stay_and_pages_open_by_themselves(chromium, tmp_path, see, monkeypatch):
    monkeypatch.setattr("services.gateway.console.gateway_client._DEADLINE_S", 0.5)
    with running(tmp_path) as stage, watched(chromium, stage.url, []) as page:
        hasten(page).goto("/console/models/disc")
        stage.stub.down = True
        wait_until(lambda: httpx2.get(f"{stage.url}/readyz").status_code == 503, 30, "the outage")
        page.goto("/console/models/disc")
        see(page.locator(".title-row fovea-ready")).to_have_text("Not ready")
        page.goto("/console/segment")
        choose(page)
        see(page.locator("fovea-outage")).to_contain_text("Not available now: stub. This page continues by itself.")
        page.goto("/console/chat")
        see(page.get_by_role("heading", level=1)).to_have_text("Starting")
        see(page.locator("fovea-outage")).to_be_visible()
        assert "`" not in page.locator("main").inner_text()
        stage.stub.down = False
        see(page.locator("#message")).to_be_visible(timeout=20_000)
        refuse = AsyncMock(side_effect=NotReady("No outage, but this model loads."))
        monkeypatch.setattr("services.gateway.console.gateway_client.InProcessClient.card", refuse)
        page.goto("/console/chat")
        page.wait_for_timeout(300)
        assert refuse.call_count == 1  # it opens again after a while, not at once and without end


def test_a_file_dropped_on_its_target_or_beside_it_is_taken_by_the_page_and_text_is_dragged_as_anywhere(page, see):
    page.goto("/console/segment")
    dropped = """(node, type) => {
        const transfer = new DataTransfer();
        ADD
        const event = new DragEvent(type, { dataTransfer: transfer, bubbles: true, cancelable: true });
        node.dispatchEvent(event);
        return event.defaultPrevented;
    }"""
    text = dropped.replace("ADD", "transfer.setData('text/plain', 'words');")
    for node in ("header", "fovea-segment #options input"):
        assert not any(page.locator(node).first.evaluate(text, kind) for kind in ("dragover", "drop"))
    assert page.locator(".dragging").count() == 0
    file = "new File([new Uint8Array(BYTES)], `${node.localName}.jpg`, { type: 'image/jpeg' })"
    drop = dropped.replace("ADD", f"transfer.items.add({file});").replace("BYTES", str(list(PICTURE["buffer"])))
    assert page.locator("header").evaluate(drop, "dragover")
    for node in ("header", "fovea-segment"):
        page.reload()
        assert page.locator(node).evaluate(drop, "drop")
        see(page.locator("[data-part=name]")).to_contain_text(f"{node}.jpg, 320 × 240")
    page.goto("/console/jobs")
    assert page.locator("header").evaluate(drop, "drop")


def test_the_job_tray_follows_jobs_on_every_page_and_the_focus_stays_in_it(page, stage, see):
    stage.queue.last_step = 1
    run_judge(page, as_job=True)
    see(page.locator("[data-part=tray-count]")).to_have_text("1")
    page.goto("/")
    see(page.get_by_role("button", name="Jobs, 1 running")).to_be_visible()
    page.locator("[data-part=open-tray]").click()
    see(page.locator("#tray")).to_contain_text("judge")
    link = page.locator("#tray a[href*=job-]").first
    link.focus()
    for _ in range(2):
        page.wait_for_event("requestfinished", lambda request: request.url.endswith("/v1/jobs?limit=50"))
    page.wait_for_timeout(200)
    see(link).to_be_focused()
    stage.queue.last_step = 4
    see(page.locator("[data-part=tray-count]")).to_be_hidden()


def test_models_are_searched_and_filtered_and_what_does_not_change_is_not_announced_again(page, see):
    page.goto("/console/models")
    page.evaluate(
        """() => {
            window.changes = 0;
            const observer = new MutationObserver((all) => (window.changes += all.length));
            observer.observe(document.querySelector("[data-part=count]"), { childList: true, characterData: true });
        }"""
    )
    for _ in range(2):
        page.wait_for_event("requestfinished")
    page.wait_for_timeout(200)
    assert page.evaluate("window.changes") == 0
    cards = page.locator("article.card:visible")
    see(cards).to_have_count(5)
    page.get_by_label("Search").fill("segment")
    see(cards).to_have_count(2)
    page.get_by_label("Ready only").check()
    see(cards).to_have_count(1)
    page.get_by_label("Search").fill("")
    page.get_by_label("Task").select_option("Classify")
    see(cards).to_have_count(1)
    see(page.locator("[data-part=count]")).to_have_text("1 shown")


def test_the_present_values_are_code_in_three_languages(page, stage, see, tmp_path):
    page.goto("/console/run/judge")
    page.locator("#option-prompt").fill("It's near?")
    page.locator("#option-count").fill("7")
    page.get_by_role("button", name="Use via API").click()
    dialog = page.get_by_role("dialog", name="Use via API")
    see(dialog).to_contain_text("POST /v1/judge")
    curl, python, script = dialog.locator("code").all_inner_texts()
    assert ("It'\\''s near?" in curl, '"count": 7' in script) == (True, True)
    sent = len(stage.stub.seen)
    exec(compile(python.replace("import httpx\n", "import httpx2 as httpx\n"), "snippet", "exec"), {})  # noqa: S102 - it is our own text
    assert (stage.stub.seen[sent]["prompt"], stage.stub.seen[sent]["count"]) == ("It's near?", 7)
    dialog.get_by_role("button", name="Close").click()
    open_with_picture(page, "segment", {**PICTURE, "name": 'a, "b".jpg'})
    page.get_by_role("button", name="Use via API").click()
    curl = dialog.locator("code").first.inner_text()
    (tmp_path / 'a, "b".jpg').write_bytes(PICTURE["buffer"])
    ran = subprocess.run(["/bin/sh", "-c", curl], cwd=tmp_path, capture_output=True, check=True, timeout=30)
    assert b'"area"' in ran.stdout
    page.keyboard.press("Escape")
    page.goto("/console/jobs")
    page.get_by_role("button", name="Use via API").click()
    see(dialog).to_contain_text("GET /v1/jobs")


def test_options_and_picture_are_sent_and_the_run_has_an_address_that_shows_it_again(page, stage, see):
    page.goto("/console/segment")
    page.locator("#option-min_area").fill("12")
    page.locator("#option-normalise").select_option(label="minmax")
    choose(page)
    page.locator("[data-part=result]").wait_for()
    sent = stage.stub.seen[-1]
    wanted = {"min_area": "12", "normalise": "minmax", "model": "disc", "threshold": "0.5"}
    assert (sent["bytes"], sent["options"] | wanted) == (len(PICTURE["buffer"]), sent["options"])
    page.wait_for_url(re.compile("run="))
    area = page.locator("[data-part=area]").inner_text()
    page.reload()
    see(page.locator("[data-part=name]")).to_contain_text("a.jpg")
    see(page.locator("[data-part=area]")).to_have_text(area)
    see(page.locator("#option-min_area")).to_have_value("12")
    page.goto("/")
    page.locator("fovea-recent-runs a").first.wait_for()
    page.goto("/runs")
    page.get_by_label("Search").fill("nothing")
    see(page.locator(".run-entry")).to_be_hidden()
    page.get_by_label("Search").fill("disc")
    page.locator(".run-link").click()
    facts = page.locator("aside.facts")
    for words in ("disc", "a.jpg", "/v1/segment"):
        see(facts).to_contain_text(words)
    see(facts.get_by_role("img", name="a.jpg")).to_have_js_property("naturalHeight", 160)
    see(page.locator("[data-part=options]")).to_contain_text('"min_area": 12')
    page.get_by_role("link", name="Open in its page").click()
    see(page.locator("[data-part=area]")).to_have_text(area)
    page.go_back()
    page.get_by_role("button", name="Delete").click()
    see(page.get_by_role("heading", name="No runs yet")).to_be_visible()


BLOCKED = """for (const name of ["localStorage", "sessionStorage", "indexedDB"]) {
    Object.defineProperty(window, name, { get() { throw new DOMException("Access is denied.", "SecurityError"); } });
}"""


def test_a_browser_that_blocks_all_storage_runs_models(page, see):
    page.add_init_script(BLOCKED)
    run_judge(page, as_job=True)
    see(page.locator("fovea-result")).to_contain_text("0.1235")
    page.goto("/console/chat")
    page.locator("#message").fill("hello")
    page.keyboard.press("Enter")
    see(page.locator(".turn").nth(1)).to_contain_text("You said: hello")


def test_a_key_opens_a_page_with_its_styles_and_place_and_runs_are_on_the_server_for_the_tenants_other_browsers(
    chromium, tmp_path, see
):
    with running(tmp_path, auth="keys") as locked:
        _, text = locked.keys.add("lab", ("infer", "jobs"))
        headers = {"authorization": f"Bearer {text}"}
        other = {"file": ("100%.json", b"{}"), "purpose": (None, "run")}
        httpx2.post(f"{locked.url}/v1/files", headers=headers, files=other).raise_for_status()
        with watched(chromium, locked.url, []) as page:
            page.add_init_script(BLOCKED.replace('"localStorage", "sessionStorage", ', ""))
            page.goto("/console/survey")
            page.locator("#key").fill(f"\u201c{text}\u200b\u201d")  # as a mail or a document may show it
            page.get_by_role("button", name="Continue").click()
            see(page.get_by_role("heading", name="Road survey")).to_be_visible()
            see(page.locator("#menu [aria-current]")).to_have_text("Survey")
            assert page.locator("link[href$='survey.css']").count() == 1
            page.goto("/console/run/judge")
            page.locator("#option-prompt").fill("x")
            page.evaluate("addEventListener('fovea-run-stored', () => (window.isStored = true))")
            page.get_by_role("button", name="Run", exact=True).click()
            while not page.evaluate("window.isStored"):
                page.wait_for_timeout(20)
            page.goto("/runs")
            see(page.locator(".run-link")).to_have_count(1)
        with watched(chromium, locked.url, []) as page:
            page.goto("/runs")
            page.locator("#key").fill(text)
            page.get_by_label("Remember on this device").check()
            page.get_by_role("button", name="Continue").click()
            page.locator(".run-link").click()
            see(page.locator("[data-part=options]")).to_contain_text('"prompt": "x"')
            other = page.context.new_page()  # the key is on the device: a new tab asks for none
            other.goto("/console/jobs")
            see(other.get_by_role("heading", name="Jobs", exact=True)).to_be_visible()


def test_code_is_copied_also_where_the_page_came_without_https(page, see):
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.goto("/console/models/disc")
    page.evaluate("window.clip = navigator.clipboard")
    page.evaluate("Object.defineProperty(navigator, 'clipboard', { value: undefined })")
    for name, start in (("Copy the curl snippet", "curl http://127.0.0.1"), ("Copy the Python code", "import httpx")):
        if "Python" in name:
            page.get_by_role("button", name="Use via API").click()
        page.get_by_role("button", name=name).click()
        see(page.get_by_role("button", name=name)).to_have_text("Copied")
        assert page.evaluate("() => clip.readText()").startswith(start)


def test_a_full_disk_drops_older_runs_and_keeps_the_new_one(page, stage):
    page.goto("/console/jobs")
    quota = {"origin": stage.url, "quotaSize": 2_000_000}
    page.context.new_cdp_session(page).send("Storage.overrideQuotaForOrigin", quota)
    kept = page.evaluate(
        """async () => {
            const { list, load, store } = await import("/console/static/js/runs.js");
            const content = new Uint8Array(300_000);
            const part = 60_000;
            for (let at = 0; at < content.length; at += part) crypto.getRandomValues(content.subarray(at, at + part));
            const kept = [];
            for (let at = 0; at < 10; at += 1) {
                const facts = { page: "/x", title: `${at}`, request: {}, answer: { at } };
                const run = await store({ ...facts, file: new File([content], `${at}.bin`) });
                kept.push((await load(run.id))?.answer.at ?? null);
            }
            return [kept, (await list()).length];
        }"""
    )
    assert (kept[0], 2 <= kept[1] < 10) == (list(range(10)), True)


def test_a_link_to_a_part_of_the_page_leaves_its_tab_open_or_opens_its_operation_as_does_a_search(page, see):
    page.goto("/console/admin#usage")
    see(page.get_by_role("tab", name="Usage")).to_have_attribute("aria-selected", "true")
    page.locator(".skip").focus()
    page.keyboard.press("Enter")
    page.wait_for_url("**/console/admin#main")
    see(page.get_by_role("tab", name="Usage")).to_have_attribute("aria-selected", "true")
    page.goto("/docs#GET-v1-jobs")
    see(page.locator("[id='GET-v1-jobs'] h3").first).to_be_visible()
    page.fill("#search", "keys ROTATE")
    see(page.locator("#found")).to_contain_text("1 of ")
    see(page.locator("details.operation:visible code").first).to_have_text("/v1/admin/keys/{key_id}/rotate")
    see(page.locator("nav li[data-operation]:visible")).to_have_count(1)
