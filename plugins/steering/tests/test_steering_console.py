"""The drawer of the chat page that steers and looks inside, with a real tiny model behind it."""

import re
from pathlib import Path
from typing import Any

import httpx2
import pytest
from playwright.sync_api import expect

from services.gateway.tests.browsing import MARKS
from services.gateway.tests.stage import fronted
from services.llm_longctx.tests.conftest import app_of, write_folder

pytestmark = MARKS

QUESTION = "Hello"


@pytest.fixture(scope="module")
def steerable(tmp_path_factory):
    """The gateway's URL, and headers with a key that may steer and one that may not."""
    folder: Path = tmp_path_factory.mktemp("steerable")
    app = app_of(write_folder(folder / "Tiny Llama"), folder / "data")
    with fronted(app, "llm-longctx", folder / "gateway", auth="keys") as (url, _, keys):
        scopes = {"may": ("infer", "interventions"), "may-not": ("infer",)}
        yield url, {name: {"x-api-key": keys.add(name, some)[1]} for name, some in scopes.items()}


@pytest.fixture
def url(steerable):
    return steerable[0]


@pytest.fixture
def page(page, steerable):
    page.set_extra_http_headers(steerable[1]["may"])
    return page


def _open(page: Any) -> None:
    page.goto("/console/chat?model=tiny-llama")
    page.locator("#option-max_tokens").fill("8")
    page.get_by_text("Steer and look inside").click()


def _make(page: Any, name: str) -> None:
    if not page.locator("#vector-name").is_visible():
        page.get_by_text("Make a vector").click()
    page.locator("#vector-name").fill(name)
    page.locator("#vector-positive").fill("calm\nquiet\n")
    page.locator("#vector-negative").fill("loud\n\nnoise!")
    page.get_by_role("button", name="Make the vector").click()
    expect(page.locator("[data-part=made]")).to_have_text(re.compile(rf"{name}@\d is made\."))


def _ask(page: Any, text: str = QUESTION) -> None:
    page.locator("#message").fill(text)
    page.keyboard.press("Enter")
    expect(page.get_by_role("button", name="Send")).to_be_visible()


def _sent(page: Any) -> list[dict[str, Any]]:
    """Bodies of the chats that the page asks for from now on."""
    sent: list[dict[str, Any]] = []
    chats = "/v1/chat/completions"
    page.on("request", lambda one: sent.append(one.post_data_json) if one.url.endswith(chats) else None)
    return sent


def test_both_answers_stand_beside_each_other_and_go_on_apart(page, steerable):
    _open(page)
    _make(page, "calm")
    vector = page.locator("#steering-vector").input_value()
    expect(page.locator("[data-part=vector-facts]")).to_contain_text("Made from 2 and 2 prompts")
    expect(page.locator("[data-part=strength-facts]")).to_contain_text("% of an activation’s length")
    page.locator("#steering-strength").fill("3")
    sent = _sent(page)
    _ask(page)
    answers = page.locator(".turn-pair .turn")
    expect(answers).to_have_count(2)
    expect(answers.nth(1)).to_contain_text(f"{vector} × 3 in layer")
    plain, steered = page.locator(".turn-pair .turn-text").all_inner_texts()
    assert plain != steered
    left, right = (answers.nth(place).bounding_box() for place in (0, 1))
    assert left["y"] == right["y"]
    assert left["x"] + left["width"] <= right["x"]
    assert "interventions" not in sent[0]
    (change,), chosen = sent[1]["interventions"], page.locator("#steering-layer").input_value()
    assert change == {"vector": vector, "strength": 3, "site": f"resid_post.{chosen}"}
    assert sent[0]["seed"] == sent[1]["seed"]
    shown = page.locator(".turn-pair .turn-text").evaluate_all("found => found.map(one => one.textContent)")
    for asked, text in zip(sent, shown, strict=True):  # what is shown is what the service says to the same request
        whole = asked | {"stream": False, "stream_options": None}
        told = httpx2.post(f"{steerable[0]}/v1/chat/completions", json=whole, headers=steerable[1]["may"])
        assert told.json()["choices"][0]["message"]["content"] == text
    _ask(page, "More")
    assert [turn["content"] for turn in sent[2]["messages"]] == [QUESTION, shown[0], "More"]
    assert [turn["content"] for turn in sent[3]["messages"]] == [QUESTION, shown[1], "More"]
    page.get_by_text("Steer and look inside").click()
    _ask(page, "Bye")
    expect(page.locator(".turn-pair")).to_have_count(2)
    assert "logprobs" not in sent[-1]


@pytest.mark.parametrize("long", [False, True], ids=["inline", "file"])
def test_a_token_shows_its_heads_and_what_they_look_at(page, steerable, long, monkeypatch):
    monkeypatch.setattr("fovea_steering.capture_writer.INLINE_NUMBERS", 10 if long else 65_536)
    _open(page)
    page.locator("#option-temperature").fill("0")
    sent = _sent(page)
    _ask(page)
    tokens = page.locator(".answer-token")
    tokens.nth(2).click()
    expect(page.locator(".head-map tbody tr")).to_have_count(4)
    expect(page.locator(".head-map button")).to_have_count(8)
    (captured,) = sent[-1]["capture"]
    monkeypatch.undo()
    asked = {"json": sent[-1], "headers": steerable[1]["may"]}
    told = httpx2.post(f"{steerable[0]}/v1/chat/completions", **asked).json()["choices"][0]
    assert told["captured"][0]["positions"] == captured["positions"]
    row = told["captured"][0]["values"][0][1][2]  # layer 1, head 2
    page.get_by_role("button", name="Layer 1, head 2:").click()
    expect(page.locator("[data-part=head-name]")).to_have_text("Layer 1, head 2")
    text = [*f"<user>{QUESTION}\n<assistant>", *(one["token"] for one in told["logprobs"]["content"])]
    best = sorted(range(len(row)), key=lambda key: -row[key])[:3]
    shown = page.locator("[data-part=look-token]").all_inner_texts()[:3]
    assert shown == [text[key].replace("\n", "↵").replace(" ", "␣") for key in best]
    bar = page.locator("progress").locator("visible=true").first
    assert bar.evaluate("bar => bar.value") == pytest.approx(max(row), abs=1e-5)
    page.get_by_role("button", name="Mean of all").click()
    expect(page.locator("[data-part=head-name]")).to_have_text("Mean of all heads")
    page.locator(".head-map button").first.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    expect(page.locator("[data-part=head-name]")).to_have_text("Layer 1, head 0")
    page.get_by_role("button", name="Close").click()
    expect(page.locator("fovea-heads")).to_be_hidden()
    expect(tokens.nth(2)).to_be_focused()


@pytest.mark.parametrize("scheme", [pytest.param("light", marks=pytest.mark.release), "dark"])
def test_the_drawer_fits_a_phone_in_either_scheme(page, scheme):
    page.emulate_media(color_scheme=scheme)
    page.set_viewport_size({"width": 390, "height": 800})
    _open(page)
    _make(page, "phone")
    page.locator("#steering-strength").fill("3")
    _ask(page)
    page.locator(".answer-token >> visible=true").first.click()  # some tokens are line breaks
    expect(page.locator(".head-map")).to_be_visible()
    assert page.locator("html").evaluate("element => element.scrollWidth") <= 390
    first, second = (page.locator(".turn-pair .turn").nth(place).bounding_box() for place in (0, 1))
    assert first["y"] + first["height"] <= second["y"]


def test_what_the_service_refuses_is_told_beside_the_form(page, complaints):
    _open(page)
    if not page.locator("#vector-name").is_visible():
        page.get_by_text("Make a vector").click()
    page.locator("#vector-name").fill("loud")
    page.locator("#vector-positive").fill("x" * 500)
    page.locator("#vector-negative").fill("y")
    page.get_by_role("button", name="Make the vector").click()
    expect(page.locator("[data-part=maker-fault]")).to_contain_text("192")
    assert page.locator("#vector-positive").input_value() == "x" * 500
    assert len(complaints) == 1
    complaints.clear()


def test_a_key_without_the_scope_reads_what_it_lacks(steerable):
    url, keys = steerable
    page = f"{url}/console/chat?model=tiny-llama"
    texts = {name: httpx2.get(page, headers=headers).text for name, headers in keys.items()}
    assert "This key may not steer a model or look inside it" in texts["may-not"]
    assert "Make a vector" not in texts["may-not"]
    assert "<fovea-heads" not in texts["may-not"]
    assert "This key may not" not in texts["may"]
    assert "Make a vector" in texts["may"]
