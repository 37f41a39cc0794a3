"""The chat page with models that remember or cite: a document with its marked citation, a session with its surprise."""

from __future__ import annotations

import re
from typing import Any

from playwright.sync_api import expect

from services.gateway.tests.browsing import MARKS

pytestmark = MARKS

FILL = "and the of to in on at by " * 12
TEXT = f"{FILL} dog red {FILL} owl teal {FILL}".strip()


def _ask(page: Any, text: str) -> None:
    page.locator("#message").fill(text)
    page.keyboard.press("Enter")


def test_document_is_read_once_and_its_citations_are_marked_in_it(page: Any) -> None:
    page.goto("/console/chat?model=fovea-landmark-recall")
    page.locator("#document-text").fill(TEXT)
    page.get_by_role("button", name="Read it once").click()
    expect(page.locator("[data-part=document-state]")).to_contain_text("tokens in")
    page.locator("#option-max_tokens").fill("1")
    _ask(page, "? dog")
    cited = page.locator(".turn").nth(1).locator(".citations li")
    expect(cited.first).to_be_visible()
    expect(cited.first.get_by_role("button")).to_contain_text(re.compile(r"block \d+ · \d+ %"))
    inside = page.locator(".citations button:enabled").first
    words = inside.locator("xpath=..").locator("q").inner_text()
    inside.click()
    assert page.locator(".document-source mark").inner_text().split() == words.strip("“”").split()
    assert page.locator(".document-source").inner_text().split() == TEXT.split()
    page.get_by_role("button", name="Delete it").click()
    expect(page.locator("#document-text")).to_be_visible()


def test_session_shows_its_size_and_what_surprised_it_and_can_go_back(page: Any) -> None:
    page.goto("/console/chat?model=fovea-titans-mac")
    state = page.locator("[data-part=session-state]")
    expect(state).to_have_text("Nothing is remembered between requests.")
    page.get_by_role("button", name="Remember from now on").click()
    expect(state).to_contain_text("0 tokens read")
    page.locator("#option-max_tokens").fill("1")
    _ask(page, "the dog red of in ? dog")
    expect(state).to_contain_text(re.compile(r"8 tokens read · [\d,]+ bytes remembered · version 1"))
    expect(page.locator(".learnt")).to_have_count(8)
    expect(page.locator(".learnt-4").first).to_be_visible()
    expect(page.locator("[data-part=surprise-mean]")).to_contain_text("mean")
    _ask(page, "? dog")
    expect(state).to_contain_text("11 tokens read")
    page.get_by_role("button", name="Take back the last turn").click()
    expect(state).to_contain_text("8 tokens read")
    page.get_by_role("button", name="Forget everything").click()
    expect(state).to_have_text("Nothing is remembered between requests.")


def test_model_of_one_task_is_asked_what_it_is_made_for(page: Any) -> None:
    page.goto("/console/chat?model=fovea-landmark-recall")
    (starter,) = page.locator("[data-starter]").all_inner_texts()
    assert starter.endswith("? dog")


def test_model_without_memory_offers_none(page: Any) -> None:
    page.goto("/console/chat?model=fovea-hybrid-nonapproximate")
    page.locator("#message").wait_for()
    assert page.locator("fovea-memory").count() == 0


def test_what_the_memory_refuses_is_told(page: Any, complaints: list[str]) -> None:
    page.goto("/console/chat?model=fovea-landmark-recall")
    page.locator("#document-text").fill("a zebra")
    page.get_by_role("button", name="Read it once").click()
    expect(page.get_by_role("alert")).to_contain_text("is no word of this model")
    assert len(complaints) == 1
    complaints.clear()
