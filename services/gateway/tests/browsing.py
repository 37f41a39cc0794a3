"""A real browser for console tests, and a page that remembers every complaint."""

import contextlib
import lzma
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from services.gateway.tests.stub_service import photograph
from tests.browser import FLAGS, chromium

AXE = lzma.decompress((Path(__file__).parents[3] / "tests/vendor/axe.min.js.xz").read_bytes()).decode()

NO_BROWSER = "THE CONSOLE IS NOT TESTED: no Chromium here. Install Debian's `chromium` (python -m tests.browser)."
MARKS = [pytest.mark.browser, pytest.mark.skipif(chromium() is None, reason=NO_BROWSER)]

PICTURE = {"name": "a.jpg", "mimeType": "image/jpeg", "buffer": photograph()}


@contextlib.contextmanager
def browser() -> Iterator[Any]:
    # Imported here: without Chromium these tests are skipped, and need no Playwright either.
    from playwright.sync_api import expect, sync_playwright

    expect.set_options(timeout=15_000)
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=chromium(), args=list(FLAGS))
        yield started
        started.close()


def new_context(started: Any, url: str) -> Any:
    context = started.new_context(base_url=url, viewport={"width": 1280, "height": 900})
    context.set_default_timeout(30_000)
    return context


def new_page(context: Any, complaints: list[str]) -> Any:
    """A page that adds to `complaints` what it reports to the console."""
    page = context.new_page()
    page.on("console", lambda said: said.type in {"error", "warning"} and complaints.append(said.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    return page


@contextlib.contextmanager
def watched(started: Any, url: str, complaints: list[str]) -> Iterator[Any]:
    """A page of a browser that was never here."""
    context = new_context(started, url)
    yield new_page(context, complaints)
    context.close()


@contextlib.contextmanager
def revisiting(context: Any, url: str, complaints: list[str]) -> Iterator[Any]:
    """A page of a browser that was here and has forgotten all but static files; it saves half of the time of a page."""
    page = new_page(context, complaints)
    yield page
    session = context.new_cdp_session(page)
    session.send("Storage.clearDataForOrigin", {"origin": url, "storageTypes": "all"})
    for each in context.pages:
        each.close()
    context.clear_cookies()
    context.clear_permissions()


def hasten(page: Any) -> Any:
    """Let pages that are opened from now on look for news after tenths of seconds, and not after seconds."""
    page.add_init_script(
        """for (const name of ["setTimeout", "setInterval"]) {
            const original = window[name];
            window[name] = (call, ms, ...rest) => original(call, ms >= 3000 ? ms / 10 : ms, ...rest);
        }"""
    )
    return page


def check_page(page: Any, *widths: int) -> None:
    """Check with axe, at widths of a desk and a phone, and that nothing is wider than the screen."""
    page.evaluate(AXE)
    for width in widths or (1280, 390):
        page.set_viewport_size({"width": width, "height": 844})
        drawn(page)
        found = page.evaluate("axe.run({ resultTypes: ['violations'] }).then(({ violations }) => violations)")
        wrong = [f"{one['id']}: {node['html'][:120]}" for one in found for node in one["nodes"]]
        assert not wrong, "\n".join(wrong)
        assert page.locator("html").evaluate("element => element.scrollWidth") <= width


def choose(page: Any, *files: dict[str, Any]) -> None:
    page.locator("[data-part=file]").set_input_files(list(files or [PICTURE]))


def press(page: Any, *keys: str) -> None:
    for key in keys:
        page.keyboard.press(key)


def hold(page: Any, address: str) -> list[Any]:
    """Hold requests to an address back, in the list that is returned."""
    held: list[Any] = []
    page.route(address, lambda route: held.append(route) or None)
    return held


def submit(stage: Any, path: str = "/v1/segment", **request: Any) -> str:
    """Queue a request as a job; returns its id. It is a picture to be segmented, unless another is given."""
    given = request or {"content": PICTURE["buffer"], "headers": {"content-type": "image/jpeg"}}
    headers = {"prefer": "respond-async", **given.pop("headers", {})}
    job: str = httpx2.post(stage.url + path, headers=headers, **given).json()["id"]
    return job


def open_with_picture(page: Any, task: str = "segment", *files: dict[str, Any]) -> None:
    """Open a task's page, choose pictures, and wait for the first result."""
    page.goto(f"/console/{task}")
    choose(page, *files)
    page.locator("[data-part=result]").wait_for()


def run_judge(page: Any, *, as_job: bool = False) -> None:
    """Open the page of a task without one of its own, and press Run."""
    page.goto("/console/run/judge")
    page.locator("#option-prompt").fill("x")
    page.locator("#as-job").set_checked(as_job)
    page.get_by_role("button", name="Run", exact=True).click()


def run_example(page: Any, task: str) -> None:
    """Open a task's page, take the model's example, and wait for the result."""
    page.goto(f"/console/{task}")
    page.get_by_role("button", name="Use the model’s example").click()
    page.locator("[data-part=result]").wait_for()


def drawn(page: Any) -> None:
    """Wait for the frame after the next: what was asked for by then is on the canvas."""
    page.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")


def drag(page: Any, start: tuple[int, int], end: tuple[int, int], width: int, height: int) -> None:
    """Drag between two pixels of a picture of this size, which stands in the middle of its canvas."""
    drawn(page)
    page.locator("[data-part=canvas]").scroll_into_view_if_needed()
    box = page.locator("[data-part=canvas]").bounding_box()
    scale = min(box["width"] / width, box["height"] / height)
    left, top = box["x"] + (box["width"] - width * scale) / 2, box["y"] + (box["height"] - height * scale) / 2
    page.mouse.move(left + start[0] * scale, top + start[1] * scale)
    page.mouse.down()
    page.mouse.move(left + end[0] * scale, top + end[1] * scale, steps=4)
    page.mouse.up()


def figure(page: Any, name: str) -> str:
    return page.locator(f"[data-part={name}]").inner_text()  # type: ignore[no-any-return]


def kept(place: Any, button: str, name: str) -> bytes:
    """Press the only such button of a page, or of a part of one; returns what it saves."""
    with getattr(place, "page", place).expect_download() as waiting:
        place.get_by_role("button", name=button, exact=True).click()
    assert waiting.value.suggested_filename == name
    return Path(waiting.value.path()).read_bytes()
