"""The console in a real browser: every flow, with no console error and no breach of the security policy."""

import io
import json
import re
import shutil
import time
from pathlib import Path

import httpx2
import numpy as np
import pytest
from PIL import Image

from services.gateway.tests.stage import running
from services.gateway.tests.stub_service import photograph

CHROMIUM = shutil.which("chromium") or "/usr/bin/chromium"
FLAGS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(
        not Path(CHROMIUM).exists(),
        reason="THE CONSOLE IS NOT TESTED: no Chromium here. Install Debian's `chromium` (python -m tests.browser).",
    ),
]

PICTURE = photograph()
PLACES = ("/", "/console/segment", "/console/chat", "/console/jobs", "/console/run/classify", "/console/models/disc")


@pytest.fixture(scope="module")
def stage(tmp_path_factory):
    with running(tmp_path_factory.mktemp("gateway")) as made:
        yield made


@pytest.fixture(scope="module")
def chromium():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        yield browser
        browser.close()


@pytest.fixture
def complaints():
    """What the browser complained about; a test that expects a complaint takes it out."""
    found: list[str] = []
    yield found
    assert not found


@pytest.fixture
def page(chromium, stage, complaints):
    context = chromium.new_context(base_url=stage.url, viewport={"width": 1280, "height": 900})
    context.set_default_timeout(10_000)
    opened = context.new_page()
    opened.on("console", lambda said: said.type in {"error", "warning"} and complaints.append(said.text))
    opened.on("pageerror", lambda error: complaints.append(str(error)))
    yield opened
    context.close()


@pytest.fixture
def see():
    from playwright.sync_api import expect

    return expect


def figure(page, name):
    """A number of the segment page."""
    return page.locator(f"[data-part={name}]").inner_text()


def segmented(page):
    """Open the segment page and run the model's example."""
    page.goto("/console/segment")
    page.get_by_role("button", name="Use the model’s example").click()
    page.locator("[data-part=result]").wait_for()


# Every page.


@pytest.mark.parametrize("place", [*PLACES, "/docs"])
def test_a_page_opens_without_complaints_and_fits_a_narrow_screen(page, place):
    page.set_viewport_size({"width": 360, "height": 780})
    page.goto(place)
    page.locator("h1").first.wait_for()
    width = page.locator("html").evaluate("element => element.scrollWidth")
    assert width <= 360


@pytest.mark.parametrize("place", PLACES)
def test_the_first_tab_skips_to_the_content_and_focus_can_be_seen(page, place):
    page.goto(place)
    page.keyboard.press("Tab")
    assert page.locator(":focus").inner_text() == "Skip to content"
    page.keyboard.press("Tab")
    outline = page.locator(":focus").evaluate("element => getComputedStyle(element).outlineStyle")
    assert outline == "solid"


def test_dark_and_light_follow_the_system(page):
    page.goto("/")
    shades = []
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        shades.append(page.locator("body").evaluate("element => getComputedStyle(element).backgroundColor"))
    light, dark = (sum(map(int, re.findall(r"\d+", shade)[:3])) for shade in shades)
    assert light > 700
    assert dark < 100


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
    page.wait_for_timeout(200)
    assert page.title() == "Models · Fovea"
    assert len(complaints) == 2
    assert all("Content Security Policy" in said for said in complaints)
    complaints.clear()


# Home.


def test_readiness_on_the_home_page_follows_the_fleet(page, stage, see):
    page.goto("/")
    place = page.locator('[data-model="disc-large"]')
    see(place).to_have_text("Not ready")
    stage.stub.cards["disc-large"]["ready"] = True
    try:
        see(place).to_have_text("Ready", timeout=15_000)
    finally:
        stage.stub.cards["disc-large"]["ready"] = False


def test_from_home_a_card_and_back_to_trying_it(page):
    page.goto("/")
    page.get_by_role("link", name="disc", exact=True).click()
    page.get_by_role("heading", name="disc", exact=True).wait_for()
    page.get_by_role("link", name="Try it").click()
    assert page.locator("#model").input_value() == "disc"


def test_a_snippet_can_be_copied(page, see):
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.goto("/console/models/disc")
    page.get_by_role("button", name="Copy the curl snippet").click()
    see(page.get_by_role("button", name="Copy the curl snippet")).to_have_text("Copied")
    assert page.evaluate("() => navigator.clipboard.readText()").startswith("curl http://127.0.0.1")


# Segment.


def test_the_example_is_segmented_and_the_models_own_numbers_are_shown(page, stage):
    segmented(page)
    answer = httpx2.post(f"{stage.url}/v1/segment", files={"image": PICTURE}).json()
    assert figure(page, "area") == f"{answer['area']:,} px"
    assert figure(page, "share") == f"{answer['area_percent']:.1f} %"
    assert figure(page, "highest") == f"{answer['max_probability']:.3f}"
    assert figure(page, "mean") == f"{answer['mean_probability']:.3f}"
    assert figure(page, "regions") == "1"
    assert "10.7 percent" in (page.locator("canvas").get_attribute("aria-label") or "")


def test_threshold_moves_on_the_client_alone(page, stage, see):
    segmented(page)
    asked = len(stage.stub.seen)
    page.locator("#live-threshold").fill("0.9")
    see(page.locator("[data-part=threshold-figure]")).to_have_text("0.900")
    see(page.locator("[data-part=area]")).not_to_have_text("8,245 px")
    answer = httpx2.post(f"{stage.url}/v1/segment", files={"image": PICTURE}, data={"threshold": "0.9"}).json()
    moved = int(figure(page, "area").replace(",", "").removesuffix(" px"))
    assert moved == pytest.approx(answer["area"], rel=0.02)
    assert len(stage.stub.seen) == asked + 1
    page.locator("#live-threshold").fill("1")
    see(page.locator("[data-part=verdict]")).to_contain_text("Nothing here reaches a probability of 1.00")


def test_overlay_outline_and_probability_change_the_picture_only(page):
    segmented(page)
    before = figure(page, "area")
    looks = {shown(page)}
    page.locator("#live-opacity").fill("0.9")
    looks.add(shown(page))
    page.locator("#live-outline").uncheck()
    looks.add(shown(page))
    page.locator("#live-heat").check()
    looks.add(shown(page))
    assert len(looks) == 4
    assert figure(page, "area") == before


def shown(page):
    """What the canvas shows."""
    page.wait_for_timeout(80)
    return page.locator("canvas").evaluate("canvas => canvas.toDataURL()")


def test_mask_overlay_and_json_can_be_kept(page, stage):
    segmented(page)
    answer = httpx2.post(f"{stage.url}/v1/segment", files={"image": PICTURE}).json()
    assert json.loads(kept(page, "JSON", "example.json"))["area"] == answer["area"]
    mask = np.asarray(Image.open(io.BytesIO(kept(page, "Mask", "example.mask.png"))))
    assert (mask > 0).sum() == answer["area"]
    assert Image.open(io.BytesIO(kept(page, "Overlay", "example.overlay.png"))).size == (320, 240)


def test_the_mask_that_is_kept_is_the_one_that_is_seen(page, stage, see):
    segmented(page)
    page.locator("#live-threshold").fill("0.8")
    see(page.locator("[data-part=threshold-figure]")).to_have_text("0.800")
    mask = np.asarray(Image.open(io.BytesIO(kept(page, "Mask", "example.mask.png"))).convert("L"))
    assert f"{(mask > 0).sum():,} px" == figure(page, "area")


def kept(page, button, name):
    """The file that a button gives."""
    with page.expect_download() as waiting:
        page.get_by_role("button", name=button, exact=True).click()
    assert waiting.value.suggested_filename == name
    return Path(waiting.value.path()).read_bytes()


def test_a_chosen_picture_is_sent_with_the_options_of_the_form(page, stage, see):
    page.goto("/console/segment")
    page.locator("#option-min_area").fill("12")
    page.locator("#option-normalise").select_option(label="minmax")
    page.locator("[data-part=file]").set_input_files({"name": "mine.jpg", "mimeType": "image/jpeg", "buffer": PICTURE})
    page.locator("[data-part=result]").wait_for()
    see(page.locator("[data-part=name]")).to_have_text("mine.jpg, 320 × 240")
    sent = stage.stub.seen[-1]
    assert sent["bytes"] == len(PICTURE)
    assert {key: sent["options"][key] for key in ("min_area", "normalise", "model", "threshold")} == {
        "min_area": "12", "normalise": "minmax", "model": "disc", "threshold": "0.5",
    }  # fmt: skip


def test_a_picture_can_be_dropped(page):
    page.goto("/console/segment")
    data = page.evaluate_handle(
        """bytes => {
            const transfer = new DataTransfer();
            transfer.items.add(new File([new Uint8Array(bytes)], 'dropped.jpg', { type: 'image/jpeg' }));
            return transfer;
        }""",
        list(PICTURE),
    )
    page.dispatch_event("fovea-segment", "drop", {"dataTransfer": data})
    page.locator("[data-part=result]").wait_for()
    assert page.locator("[data-part=name]").inner_text().startswith("dropped.jpg")


def test_bytes_that_are_no_picture_are_answered_in_words(page, complaints):
    page.goto("/console/segment")
    page.locator("[data-part=file]").set_input_files({"name": "x.png", "mimeType": "image/png", "buffer": b"nope"})
    alert = page.get_by_role("alert")
    alert.wait_for()
    assert "The bytes are not a picture." in alert.inner_text()
    assert "Send PNG or JPEG." in alert.inner_text()
    assert "Request stub-1" in alert.inner_text()
    assert ["400" in said for said in complaints] == [True]
    complaints.clear()


def test_another_model_keeps_the_picture_and_runs_again(page, stage, see):
    segmented(page)
    page.locator("#model").select_option("disc-large")
    see(page).to_have_url(re.compile("model=disc-large"))
    see(page.get_by_text("Card, licence and limits")).to_have_attribute("href", "/console/models/disc-large")
    page.wait_for_timeout(300)
    assert stage.stub.seen[-1]["options"]["model"] == "disc-large"


def test_a_segmentation_can_run_as_a_job_and_comes_back_to_the_page(page, stage, see):
    page.goto("/console/segment")
    page.locator("#as-job").check()
    page.get_by_role("button", name="Use the model’s example").click()
    see(page.locator("[data-part=progress-note]")).to_contain_text("of 5")
    page.locator("[data-part=result]").wait_for()
    assert figure(page, "area") == "8,245 px"
    assert list(stage.queue.jobs.values())[-1].status == "succeeded"


def test_stopping_a_job_cancels_it(page, stage, see):
    stage.queue.step_s = 0.5
    page.goto("/console/segment")
    page.locator("#as-job").check()
    page.get_by_role("button", name="Use the model’s example").click()
    see(page.locator("[data-part=progress-note]")).to_contain_text("of 5")
    page.get_by_role("button", name="Stop").click()
    see(page.locator("[data-part=progress]")).to_be_hidden()
    stage.queue.step_s = 0.05
    until = time.monotonic() + 5
    while list(stage.queue.jobs.values())[-1].status != "cancelled":
        assert time.monotonic() < until
        time.sleep(0.02)


# Chat.


def test_an_answer_is_written_as_it_comes_with_its_usage(page, stage, see):
    stage.stub.token_s = 0.15
    page.goto("/console/chat")
    page.locator("#message").fill("one two three four")
    page.keyboard.press("Enter")
    answer = page.locator(".turn").nth(1).locator(".turn-text")
    see(answer).to_contain_text("You said:")
    assert "four" not in answer.inner_text()
    see(page.get_by_role("button", name="Stop")).to_be_visible()
    see(answer).to_have_text("You said: one two three four")
    see(page.locator("[data-part=usage]")).to_have_text(
        re.compile(r"7 tokens in · 6 out · [\d.]+ tokens/s · first after")
    )
    see(page.locator("#message")).to_be_focused()
    stage.stub.token_s = 0.01


def test_stopping_keeps_what_was_written(page, stage, see):
    stage.stub.token_s = 0.2
    page.goto("/console/chat")
    page.locator("#message").fill("a b c d e f g h")
    page.keyboard.press("Enter")
    see(page.locator(".turn").nth(1)).to_contain_text("You said:")
    page.get_by_role("button", name="Stop").click()
    see(page.locator(".turn-cut")).to_have_count(1)
    stage.stub.token_s = 0.01
    page.locator("#message").fill("next")
    page.keyboard.press("Enter")
    see(page.locator(".turn").nth(3)).to_contain_text("You said: next")
    assert [turn["role"] for turn in stage.stub.seen[-1]["messages"]] == ["user", "assistant", "user"]


def test_sampling_options_and_the_system_prompt_reach_the_model(page, stage, see):
    page.goto("/console/chat")
    page.locator("[data-part=system]").fill("Be brief.")
    page.locator("#option-temperature").fill("0")
    see(page.locator('output[for="option-temperature"]')).to_have_text("0")
    page.get_by_text("more options").click()
    page.locator("#option-seed").fill("5")
    page.locator("#option-max_tokens").fill("2")
    page.get_by_text("Write a haiku about retinas.").click()
    see(page.locator(".turn").nth(1)).to_contain_text("You said:")
    sent = stage.stub.seen[-1]
    assert sent["messages"][0] == {"role": "system", "content": "Be brief."}
    assert (sent["temperature"], sent["seed"], sent["max_tokens"], sent["stream"]) == (0, 5, 2, True)
    assert "n" not in sent


def test_a_refused_question_is_given_back_with_the_reason(page, stage, see, complaints):
    page.goto("/console/chat")
    page.locator("#option-temperature").evaluate("slider => { slider.max = 9; slider.value = 9; }")
    page.locator("#message").fill("precious words")
    page.keyboard.press("Enter")
    see(page.get_by_role("alert")).to_contain_text("temperature: must be at most 2.")
    see(page.locator("#message")).to_have_value("precious words")
    see(page.locator(".turn")).to_have_count(0)
    assert ["400" in said for said in complaints] == [True]
    complaints.clear()


def test_a_conversation_can_run_as_a_job_and_be_cleared(page, see):
    page.goto("/console/chat")
    page.locator("#as-job").check()
    page.locator("#message").fill("patiently")
    page.keyboard.press("Enter")
    see(page.locator(".turn").nth(1)).to_contain_text("You said: patiently")
    see(page.locator("[data-part=usage]")).to_contain_text("3 out")
    page.get_by_role("button", name="Clear the conversation").click()
    see(page.locator(".turn")).to_have_count(0)
    see(page.locator("[data-part=nothing]")).to_be_visible()


# Jobs.


def queue_one(stage, body=PICTURE):
    headers = {"content-type": "image/jpeg", "prefer": "respond-async"}
    return httpx2.post(f"{stage.url}/v1/segment", content=body, headers=headers).json()["id"]


def test_a_job_is_seen_moving_until_its_result_can_be_opened(page, stage, see):
    stage.queue.step_s = 0.9
    page.goto("/console/jobs")
    job = queue_one(stage)
    row = page.locator(f'[data-job="{job}"]')
    row.wait_for()
    see(row).to_contain_text("Running")
    see(row).to_contain_text("step 3 of 5 · 60 %")
    see(row).to_contain_text("Succeeded")
    stage.queue.step_s = 0.05
    row.get_by_role("button", name="Result").click()
    see(row.locator("fovea-answer img")).to_be_visible()
    see(row.locator("fovea-answer")).to_contain_text("area percent")
    with page.expect_download() as waiting:
        row.get_by_role("button", name="Download").click()
    assert waiting.value.suggested_filename == f"{job}.json"


def test_a_running_job_can_be_cancelled_and_retried(page, stage, see):
    stage.queue.step_s = 1
    job = queue_one(stage)
    page.goto("/console/jobs")
    row = page.locator(f'[data-job="{job}"]')
    row.get_by_role("button", name="Cancel").click()
    see(row).to_contain_text("Cancelled")
    stage.queue.step_s = 0.05
    row.get_by_role("button", name="Retry").click()
    see(row).to_contain_text("Succeeded")


def test_a_failed_job_says_why_and_offers_no_result(page, stage, see):
    job = queue_one(stage, b"nope")
    page.goto("/console/jobs")
    row = page.locator(f'[data-job="{job}"]')
    see(row).to_contain_text("The bytes are not a picture.")
    see(row.get_by_role("button", name="Result")).to_be_hidden()
    see(row.get_by_role("button", name="Retry")).to_be_visible()


def test_without_jobs_the_page_says_how_to_make_one(page, stage, see):
    kept_jobs = dict(stage.queue.jobs)
    stage.queue.jobs.clear()
    page.goto("/console/jobs")
    see(page.get_by_role("heading", name="No jobs yet")).to_be_visible()
    stage.queue.jobs.update(kept_jobs)


# Any other task.


def test_a_model_without_a_page_of_its_own_is_run_from_its_schema(page, stage, see):
    page.goto("/console/run/classify")
    page.locator("#option-image").set_input_files({"name": "a.jpg", "mimeType": "image/jpeg", "buffer": PICTURE})
    page.locator("#option-top_k").fill("2")
    page.get_by_role("button", name="Run", exact=True).click()
    see(page.locator("fovea-answer tbody tr")).to_have_count(2)
    assert stage.stub.seen[-1]["options"] == {"model": "patches/tiny", "top_k": 2}
    assert json.loads(kept(page, "Download the answer", "patches-tiny.json"))["model"] == "patches/tiny"


def test_its_example_needs_no_file(page, see):
    page.goto("/console/run/classify")
    page.get_by_role("button", name="Use the example").click()
    page.get_by_role("button", name="Run", exact=True).click()
    see(page.locator("fovea-answer tbody tr")).to_have_count(3)


def test_a_required_picture_is_asked_for_before_anything_is_sent(page, stage):
    asked = len(stage.stub.seen)
    page.goto("/console/run/classify")
    page.get_by_role("button", name="Run", exact=True).click()
    assert page.locator("#option-image").evaluate("input => input.validity.valueMissing")
    assert len(stage.stub.seen) == asked


# Keys.


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
        page.get_by_role("button", name="Forget key").click()
        see(page.locator("#key")).to_be_visible()
        page.context.close()
