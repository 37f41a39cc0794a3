"""The console's page for probes in a real browser, before the real service: forms, pictures, permalinks, the loop."""

import io
import json
import re
import sys
from pathlib import Path
from unittest.mock import MagicMock
from urllib.parse import quote

import httpx2
import numpy as np
import pytest
from PIL import Image

from services.gateway.tests.browsing import MARKS, check_page, kept
from services.gateway.tests.stage import fronted
from services.interpretability.core.experiment import EXAMPLE_LM
from services.interpretability.core.report import heat_map
from services.interpretability.routes import build_router
from shared.lm.head_plan import HeadPlan
from shared.registry import servables
from shared.serving.build_app import build
from shared.settings import Settings
from tests.harness.waiting import wait_until

QUEUED = {
    "id": "j", "status": "queued", "progress": 0, "created": "2026-01-01T00:00:00Z", "service": "interpretability",
    "path": "/v1/probe",
}  # fmt: skip

pytestmark = [*MARKS]


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    found = servables("interpretability")
    settings = Settings(data_dir=folder, intra_op_threads=1)
    app = build("interpretability", routers=[build_router(found)], servables=found, settings=settings)
    with fronted(app, "interpretability", folder) as (address, *_):
        yield address


def spec_page(model, **spec):
    return f"/console/probe?model={model}&spec={quote(json.dumps(spec))}"


ATTENTION = spec_page("attention", lm="tiny", text="kqzwxm kqzwx", layers=[1], heads=[2])


def test_permalink_of_one_forward_draws_a_figure_that_tells_its_values_and_is_saved_as_a_picture(page):
    page.goto(ATTENTION)
    cell = page.locator(".report svg g:has(> title), .report svg rect:has(> title), .report svg a:has(> title)").first
    cell.wait_for()
    assert page.locator(".report h2").inner_text() == "Attention"
    assert page.locator(".report a", has_text="Permalink").count() == 0  # it would stand above the page's own
    assert page.locator("#option-text").input_value() == "kqzwxm kqzwx"
    words = cell.locator("> title").first.text_content()
    cell.dispatch_event("pointerover")
    assert page.locator(".figure-tools output").first.inner_text().strip() == words.strip()
    assert kept(page, "figure 1 as SVG", "figure-1.svg").startswith(b"<svg")
    assert kept(page, "figure 1 as PNG", "figure-1.png").startswith(b"\x89PNG")
    page.emulate_media(color_scheme="dark")
    shot = Image.open(io.BytesIO(page.locator(".report figure").first.screenshot())).convert("L")
    assert np.asarray(shot).mean() < 90  # no white ground in the dark


def test_a_head_shows_its_attention_token_by_token_and_chosen_ones_are_ablated(page, see):
    page.goto(spec_page("indicators", lm="tiny", text="kqzwxm kqzwxm"))
    menu = page.get_by_role("combobox", name="Language model")
    see(menu).to_have_value("tiny")
    see(menu.locator("option").first).to_contain_text("Default:")
    page.locator(".report svg a").nth(5).click()
    head = page.get_by_role("region", name="Layer 1, head 1")
    tokens = head.locator("[data-part=head-token]")
    see(tokens).to_have_count(13)
    see(head.locator("[data-part=head-reads]")).to_contain_text(re.compile(r"From “m”: \d+ % on “.” \(\d+\)"))
    before = head.locator("[data-part=head-reads]").inner_text()
    tokens.nth(8).click()
    see(tokens.nth(8)).to_have_attribute("aria-pressed", "true")
    see(head.locator("[data-part=head-reads]")).not_to_have_text(before)
    check_page(page)
    page.set_viewport_size({"width": 1280, "height": 900})
    page.get_by_role("button", name="Choose this head").click()
    page.locator(".report svg a").nth(6).dispatch_event("click")
    page.get_by_role("region", name="Layer 1, head 2").wait_for()
    page.get_by_role("button", name="Choose this head").click()
    chosen = page.get_by_role("region", name="Chosen heads")
    see(chosen.get_by_role("button", name="Remove head 1-2")).to_be_visible()
    plans = page.evaluate("document.querySelector('fovea-probe').bench.buildPlan()")
    assert (plans["schema"], plans["rule"]) == ("head-plan/1", "chosen by hand: 1-1, 1-2")
    assert (HeadPlan.parse(plans).roles[1], sum(map(sum, plans["roles"]))) == ([1, 1], 2)
    chosen.get_by_role("button", name="Ablate these").click()
    see(page.locator(".report h2")).to_have_text("Ablation")
    see(page.locator("#option-heads")).to_have_value(re.compile(r"\[\s*1,\s*2\s*\]"))
    page.goto(spec_page("indicators", lm="tiny", text="kqzwxm kqzwxm"))
    page.locator(".report svg a").nth(5).click()
    head.get_by_role("link", name="Open as a page").click()
    page.wait_for_url("**/console/probe?model=attention*")
    see(page.locator("#option-layers")).to_be_attached()
    see(menu).to_be_visible()


def test_an_experiment_is_a_notebook_that_runs_and_a_figure_is_csv_and_both_are_of_the_report_that_is_shown(page):
    page.goto(ATTENTION)
    page.locator(".report svg").first.wait_for()
    rows = kept(page, "figure 1 as CSV", "figure-1.csv").decode().splitlines()
    assert rows[0] == "row,column,value"
    page.locator("#model").select_option("ablation")
    page.wait_for_url("**model=ablation*")
    notebook = json.loads(kept(page, "Notebook", "attention.ipynb"))
    assert b"<h1>Attention" in kept(page, "Download the report", "attention.html")
    page.get_by_role("button", name="Copy permalink").click()
    page.wait_for_url("**model=attention&spec=*kqzwxm*")
    assert "model=attention" in "".join(notebook["cells"][0]["source"])
    assert (notebook["nbformat"], len({cell["id"] for cell in notebook["cells"]})) == (4, 4)
    namespace = {}
    for cell in notebook["cells"][1:3]:
        exec("".join(cell["source"]), namespace)  # noqa: S102 - it is our own text
    assert float(rows[1].split(",")[-1]) == pytest.approx(namespace["report"]["grids"][0]["values"][0][0], abs=0.01)
    namespace["client"].close()
    compile("".join(notebook["cells"][3]["source"]), "plot", "exec")


def test_pinned_runs_stay_and_are_compared(page, see):
    for heads in ([[1, 1]], [[1, 1], [1, 2], [1, 3]]):
        page.goto(spec_page("ablation", lm="tiny", text="kqzwxm kqzwxm kqzwxm", heads=heads))
        page.locator(".report svg").first.wait_for()
        page.get_by_role("button", name="Pin", exact=True).click()
        see(page.get_by_role("button", name="Pinned")).to_be_visible()
    page.goto("/console/probe?model=ablation")
    pins = page.locator("fovea-pins")
    see(pins.get_by_role("listitem")).to_have_count(2)
    for box in pins.get_by_role("checkbox").all():
        box.check()
    row = pins.locator("[data-part=numbers] tr").filter(has_text="nll after")
    first, second, difference = row.locator("td").all_inner_texts()
    assert float(difference) == pytest.approx(float(second.split()[0]) - float(first.split()[0]), abs=1e-3)
    assert float(difference) != 0
    see(pins.locator("article.report")).to_have_count(2)
    check_page(page)
    page.set_viewport_size({"width": 1280, "height": 900})
    pins.get_by_role("button", name="Unpin").first.click()
    see(pins.get_by_role("listitem")).to_have_count(1)


def test_a_job_that_answered_json_opens_as_its_report(page, url, see):
    request = {"model": "attention", "lm": "tiny", "text": "kqzwxm kqzwx", "layers": [1], "heads": [2]}
    job = httpx2.post(f"{url}/v1/probe", json=request, headers={"prefer": "respond-async"}).json()["id"]
    wait_until(lambda: httpx2.get(f"{url}/v1/jobs/{job}").json()["status"] == "succeeded", 60, "the job")
    page.goto(f"/console/probe?model=attention&job={job}")
    see(page.locator("[data-part=answer] .heat-map, [data-part=answer] svg").first).to_be_visible()
    see(page.locator("#option-text")).to_have_value("kqzwxm kqzwx")


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
    events = {"content_type": "text/event-stream", "body": 'data: {"id":"j","status":"succeeded","progress":1}\n\n'}
    grid = {"content_type": "text/html", "body": "<main><h1>Needle grid</h1><p>recall</p></main>"}
    page.route("**/v1/jobs/j/events", lambda route: route.fulfill(**events))
    page.route("**/v1/jobs/j/result", lambda route: route.fulfill(**grid))
    page.get_by_role("button", name="Needle grid with these heads").click()
    page.get_by_role("heading", name="Needle grid with duo").wait_for()
    assert page.locator("[data-part=loop] [data-part=progress]").count() == 1, "how far it is stands next to the button"
    assert [request["longctx"]["method"] for request in asked] == ["dense", "duo"]
    assert asked[1]["longctx"]["plan"]["schema"] == "head-plan/1"


def test_refusals_and_broken_permalinks_are_told_in_words(page, complaints):
    page.goto(spec_page("attention-sinks", lm="tiny", text="short"))
    page.get_by_text("below 16").wait_for()
    page.goto("/console/probe?model=attention&spec=nonsense")
    page.get_by_text("not a JSON object").wait_for()
    complaints.clear()  # the browser notes the 422


def test_a_notebooks_maps_are_white_at_zero_and_named_by_their_ticks(monkeypatch):
    source = (Path(__file__).parents[2] / "services/gateway/console/static/js/notebook.js").read_text("utf8")
    drawn = MagicMock()
    monkeypatch.setitem(sys.modules, "matplotlib", drawn)
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", drawn.pyplot)
    grid = heat_map(
        "effect", [[-0.1, 2], [float("nan"), 1]], ("layer", [3, 7]), ("head", [0, 5]), "How.", scale="diverging"
    )
    report = {"grids": [grid.model_dump()], "bars": []}
    exec(re.search("const PLOT = `([^`]*)`", source)[1], {"report": report})  # noqa: S102 - it is our own text
    plot = drawn.pyplot
    assert [plot.imshow.call_args.kwargs[end] for end in ("vmin", "vmax")] == [-2, 2]
    assert (plot.yticks.call_args.args, plot.xticks.call_args.args[1]) == ((range(2), ["3", "7"]), ["0", "5"])
