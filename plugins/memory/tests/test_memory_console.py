"""The chat page with models that remember or cite: a document with its marked citation, a session with its surprise."""

import re
from pathlib import Path
from typing import Any

import httpx2
from playwright.sync_api import expect

from services.gateway.tests.browsing import MARKS

pytestmark = MARKS

FILL = "and the of to in on at by " * 12
TEXT = f"{FILL} dog red {FILL} owl teal {FILL}".strip()


def _ask(page: Any, text: str) -> None:
    page.locator("#message").fill(text)
    page.keyboard.press("Enter")


def test_document_is_read_once_and_its_citations_are_marked_in_it(page, complaints):
    page.goto("/console/chat?model=fovea-landmark-recall")
    page.locator("#document-text").fill(TEXT)
    page.get_by_role("button", name="Add the document").click()
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
    place = "`/v1/documents/${document.querySelector('[data-part=panel]').document.id}`"
    page.evaluate(f"fetch({place}, {{method: 'DELETE'}})")
    page.get_by_role("button", name="Delete the document").click()
    expect(page.locator("#document-text")).to_be_visible()
    complaints.clear()


def test_session_shows_its_size_and_what_surprised_it_and_can_go_back(page):
    page.goto("/console/chat?model=fovea-titans-mac")
    state = page.locator("[data-part=session-state]")
    expect(state).to_have_text("The model keeps no memory between requests.")
    page.get_by_role("button", name="Open a session").click()
    expect(state).to_contain_text("0 tokens read")
    page.locator("#option-max_tokens").fill("1")
    _ask(page, "the dog red of in ? dog")
    expect(state).to_contain_text(re.compile(r"8 tokens read · [\d,]+ bytes of memory · version 1"))
    expect(page.locator(".learnt")).to_have_count(8)
    expect(page.locator(".learnt-4").first).to_be_visible()
    expect(page.locator("[data-part=surprise-mean]")).to_contain_text("mean")
    _ask(page, "? dog")
    expect(state).to_contain_text("11 tokens read")
    page.get_by_role("button", name="Undo the last turn").click()
    expect(state).to_contain_text("8 tokens read")
    page.get_by_role("button", name="Delete the session").click()
    expect(state).to_have_text("The model keeps no memory between requests.")


def test_model_without_memory_offers_none(page):
    page.goto("/console/chat?model=fovea-hybrid-nonapproximate")
    page.locator("#message").wait_for()
    assert page.locator("fovea-session-memory").count() == 0


def test_what_the_memory_refuses_is_told(page, complaints):
    page.goto("/console/chat?model=fovea-landmark-recall")
    page.locator("#document-text").fill("a zebra")
    page.get_by_role("button", name="Add the document").click()
    expect(page.get_by_role("alert")).to_contain_text("is not a word of this model")
    assert len(complaints) == 1
    complaints.clear()


def _talked(page: Any, model: str = "fovea-titans-mac") -> str:
    """A session that has read one request; its id."""
    page.goto(f"/console/chat?model={model}")
    page.get_by_role("button", name="Open a session").click()
    name = page.locator("[data-part=session-id]")
    expect(name).to_have_text(re.compile(r"s_\w{20}"))
    page.locator("#option-max_tokens").fill("1")
    _ask(page, "the dog red of in ? dog")
    expect(page.locator("[data-part=session-state]")).to_contain_text("8 tokens read")
    return str(name.inner_text())


def _row(page: Any, name: str) -> Any:
    return page.locator(f'[data-session="{name}"]')


def test_sessions_are_listed_with_what_they_remember_and_one_is_gone_on_with(page):
    older, name = _talked(page, "fovea-titans-lmm"), _talked(page)
    page.get_by_role("main").get_by_role("link", name="Sessions").click()
    rows = page.locator(".session")
    expect(rows.first.locator("[data-part=id]")).to_have_text(name)
    expect(rows.nth(1).locator("[data-part=id]")).to_have_text(older)
    row = _row(page, name)
    told = {"model": "fovea-titans-mac", "tokens": "8", "memory": re.compile(r"[\d.]+ KiB"), "version": "1"}
    for part, text in (*told.items(), ("versions", "also kept: 0"), ("updated", "just now")):
        expect(row.locator(f"[data-part={part}]")).to_have_text(text)
    row.get_by_role("link", name="Continue").click()
    state = page.locator("[data-part=session-state]")
    expect(state).to_contain_text("8 tokens read")
    expect(page.locator(".learnt")).to_have_count(8)
    page.locator("#option-max_tokens").fill("1")
    _ask(page, "? dog")
    expect(state).to_contain_text("11 tokens read")
    page.reload()
    expect(state).to_contain_text("11 tokens read")
    page.locator("fovea-model select").select_option("fovea-titans-lmm")
    expect(state).to_have_text("The model keeps no memory between requests.")
    assert "session=" not in page.url


def test_session_is_forked_exported_and_deleted_from_the_list(page):
    name = _talked(page)
    page.goto("/console/sessions")
    row = _row(page, name)
    row.wait_for()
    before = page.locator(".session").count()
    row.get_by_role("button", name="Fork").click()
    expect(page.locator(".session")).to_have_count(before + 1)
    twin = page.locator(".session").first
    expect(twin).to_be_focused()
    expect(twin.locator("[data-part=tokens]")).to_have_text("8")
    with page.expect_download() as waiting:
        row.get_by_role("button", name="Export").click()
    assert waiting.value.suggested_filename == f"{name}-v1.state"
    assert Path(waiting.value.path()).read_bytes().startswith(b"FOVEATTN")
    row.get_by_role("button", name="Delete").click()
    page.keyboard.press("Tab")  # looking elsewhere takes it back
    expect(row.get_by_role("button", name="Delete", exact=True)).to_be_visible()
    row.get_by_role("button", name="Delete").click()
    row.get_by_role("button", name="Delete for good").click()
    expect(row).to_have_count(0)
    page.reload()
    expect(page.locator(".session")).to_have_count(before)
    expect(row).to_have_count(0)


def test_older_sessions_come_a_page_at_a_time(page, url):
    with httpx2.Client(base_url=url) as client:
        for _ in range(51 - len(client.get("/v1/sessions", params={"limit": 1000}).json()["data"])):
            client.post("/v1/sessions", json={"model": "fovea-titans-mac"}).raise_for_status()
        names = [one["id"] for one in client.get("/v1/sessions", params={"limit": 1000}).json()["data"]]
    page.goto("/console/sessions")
    expect(page.locator(".session")).to_have_count(50)
    expect(page.locator("[data-part=count]")).to_contain_text("50 and more sessions")
    page.get_by_role("button", name="Show older sessions").click()
    expect(page.locator(".session")).to_have_count(51)
    expect(page.get_by_role("button", name="Show older sessions")).to_be_hidden()
    assert page.locator(".session [data-part=id]").all_inner_texts() == names


def test_session_that_is_gone_is_told_in_list_and_chat(page, url, complaints):
    name = _talked(page)
    page.goto("/console/sessions")
    _row(page, name).wait_for()
    httpx2.delete(f"{url}/v1/sessions/{name}").raise_for_status()
    _row(page, name).get_by_role("button", name="Fork").click()
    expect(page.get_by_role("alert")).to_contain_text(f"There is no session {name}.")
    page.goto(f"/console/chat?model=fovea-titans-mac&session={name}")
    expect(page.get_by_role("alert")).to_contain_text(f"There is no session {name}.")
    expect(page.get_by_role("button", name="Open a session")).to_be_visible()
    assert ["404" in said for said in complaints] == [True, True]
    complaints.clear()


def test_double_clicks_open_one_session_and_delete_none(page, url):
    def count():
        return len(httpx2.get(f"{url}/v1/sessions", params={"limit": 1000}).json()["data"])

    before = count()
    page.goto("/console/chat?model=fovea-titans-mac")
    page.route("**/v1/sessions", lambda route: page.wait_for_timeout(300) or route.continue_())
    page.get_by_role("button", name="Open a session").dblclick()
    expect(page.locator("[data-part=session-id]")).to_have_text(re.compile(r"s_\w{20}"))
    assert count() == before + 1
    page.goto("/console/sessions")
    row = page.locator(".session").first
    row.get_by_role("button", name="Delete").dblclick()
    expect(row.get_by_role("button", name="Delete for good")).to_be_visible()
    assert count() == before + 1
