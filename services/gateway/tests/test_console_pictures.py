"""Pages of pictures in a real browser: masks that move with the sliders, many at once, files that are none."""

import base64
import io
import json
import re
import zipfile

import httpx2
import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from services.gateway.tests.browsing import (
    MARKS,
    PICTURE,
    check_page,
    choose,
    drawn,
    figure,
    hasten,
    kept,
    open_with_picture,
    press,
    run_example,
    submit,
)
from services.gateway.tests.stub_service import photograph, plain
from tests.harness.waiting import wait_until

pytestmark = MARKS


def _file(name, buffer=PICTURE["buffer"], kind="image/jpeg"):
    return {"name": name, "mimeType": kind, "buffer": buffer}


def _answer(page, problem):
    kind, text = "application/problem+json", json.dumps(problem)
    page.route("**/v1/segment", lambda route: route.fulfill(status=problem["status"], content_type=kind, body=text))


def test_many_pictures_are_sent_one_after_the_other_and_each_can_be_shown(page, stage, see, complaints):
    asked = len(stage.stub.seen)
    page.goto("/console/segment")
    choose(page, _file("a.jpg"), _file("b.jpg", photograph(200, 100)), _file("c.txt", b"nope", "text/plain"))
    frames = page.get_by_role("listbox", name="Images").get_by_role("option")
    see(frames).to_have_count(3)
    for name in ("a.jpg, done", "b.jpg, done", "c.txt, failed"):
        see(page.get_by_role("option", name=name)).to_be_visible()
    assert len(stage.stub.seen) == asked + 3
    see(page.locator("[data-part=name]")).to_contain_text("a.jpg, 320 × 240")
    frames.nth(0).focus()
    page.keyboard.press("ArrowRight")
    see(page.locator("[data-part=name]")).to_contain_text("b.jpg, 200 × 100")
    see(page.locator("[data-part=area]")).to_contain_text("px")
    page.keyboard.press("ArrowRight")
    for words in ("The bytes are not a picture.", "Send PNG or JPEG.", "Request stub-1"):
        see(page.get_by_role("alert")).to_contain_text(words)
    page.keyboard.press("Delete")
    see(frames).to_have_count(2)
    see(page.get_by_role("alert")).to_be_hidden()
    assert len(stage.stub.seen) == asked + 3
    complaints.clear()


@pytest.fixture
def small_limit(stage):
    stage.stub.cards["disc"]["limits"] = {"max_batch": 8, "max_side": None, "max_pixels": 40_000}
    yield 40_000
    stage.stub.cards["disc"]["limits"] = {"max_batch": 8, "max_side": None}


@pytest.mark.usefixtures("small_limit")
def test_a_picture_over_the_limit_is_not_sent_and_can_be_scaled_to_it(page, stage, see):
    asked = len(stage.stub.seen)
    page.goto("/console/segment")
    see(page.locator("[data-part=drop]")).to_contain_text("up to 0.04 megapixels")
    choose(page, _file("phone.jpg"))
    alert = page.get_by_role("alert")
    see(alert).to_contain_text("Too large")
    assert len(stage.stub.seen) == asked
    alert.get_by_role("button", name="Scale to").click()
    see(page.locator("[data-part=result]")).to_be_visible()
    see(page.locator("[data-part=name]")).to_contain_text("phone-scaled.jpg, 230 × 173")
    see(alert).to_be_hidden()
    assert len(stage.stub.seen) == asked + 1


def test_no_picture_leaves_no_frame_and_what_takes_long_offers_a_job_or_a_smaller_picture(page, stage, see, complaints):
    problem = {"title": "Not an image", "detail": "This file is not an image: it contains text.", "status": 415}
    _answer(page, problem)
    page.goto("/console/segment")
    choose(page, _file("wrong.jpg", b"I am text"))
    see(page.get_by_role("alert")).to_contain_text("This file is not an image")
    see(page.locator("[data-part=viewer]")).to_be_hidden()
    see(page.locator("[data-part=drop]")).to_be_visible()
    see(page.get_by_role("button", name="Segment", exact=True)).to_be_disabled()
    assert "this browser shows only its mask" not in page.locator("main").inner_text()
    complaints.clear()
    told = "154 tiles would take about 7:14:13 (h:mm:ss)."
    hint = "Send it with `Prefer: respond-async`: it then runs as a job, with progress."
    page.goto("/console/segment")
    _answer(page, {"title": "Deadline exceeded", "detail": told, "hint": hint, "status": 504})
    choose(page, _file("large.png", plain((0, 128, 128), 2000, 1500), "image/png"))
    alert = page.get_by_role("alert")
    see(alert).to_contain_text("7:14:13")
    assert not any(word in alert.inner_text() for word in ("`", "respond-async"))
    see(alert.get_by_role("button", name="Scale to 2 MP and segment")).to_be_visible()
    page.unroute("**/v1/segment")
    alert.get_by_role("button", name="Run as a job").click()
    see(page.locator("[data-part=progress-note]")).to_contain_text("of 5")
    see(page.locator("[data-part=result]")).to_be_visible()
    assert list(stage.queue.jobs.values())[-1].status == "succeeded"
    see(page.locator("#as-job")).to_be_checked()
    complaints.clear()


def test_findings_are_chosen_judged_by_key_and_exported(page, see):
    page.goto("/console/segment")
    choose(page)
    findings = page.get_by_role("list", name="Findings")
    see(findings.get_by_role("listitem")).to_have_count(2)
    before = page.locator("[data-part=canvas]").evaluate("canvas => canvas.toDataURL()")
    findings.focus()
    page.keyboard.press("j")
    see(findings.get_by_role("listitem").first).to_have_attribute("aria-current", "true")
    page.wait_for_function("before => document.querySelector('[data-part=canvas]').toDataURL() !== before", arg=before)
    press(page, "a", "j", "x")
    lines = kept(page, "Findings as CSV", "a.findings.csv").decode().splitlines()
    assert lines[0] == "file,region,area,x1,y1,x2,y2,probability,verdict,by_hand"
    assert [line.split(",")[0] + line.split(",")[-2] for line in lines[1:]] == ["a.jpgaccepted", "a.jpgrejected"]


def test_the_viewer_zooms_by_key_fits_again_and_the_wipe_uncovers_the_picture_itself(page):
    open_with_picture(page, "segment", _file(f"{'a_long_name_' * 12}.jpg"))
    width = "document.querySelector('[data-part=canvas]').clientWidth"
    fitted = page.evaluate(width)
    page.locator("fovea-viewer").focus()
    press(page, "+", "+")
    assert page.evaluate(width) > 1.9 * fitted
    page.get_by_role("button", name="Fit").click()
    assert page.evaluate(width) == fitted
    spot = "document.querySelector('[data-part=canvas]').toDataURL()"
    drawn(page)
    covered = page.evaluate(spot)
    for share, is_covered in (("1", False), ("0", True)):
        page.get_by_label("Wipe").fill(share)
        drawn(page)
        assert (page.evaluate(spot) == covered) is is_covered
    check_page(page, 1280, 320)  # with a long name it is as wide as the screen, too


def test_a_report_and_matrices_of_a_job_are_shown_as_such(page, stage, see):
    matrix = {"values": [[0.1, 0.9], [0.4, 0.2]], "title": "Logit lens"}
    hasten(page).goto("/console/jobs")
    job = submit(stage)
    page.route(f"**/v1/jobs/{job}/result", lambda route: route.fulfill(json=matrix))
    row = page.locator(f'[data-job="{job}"]')
    row.get_by_role("button", name="Result").click()
    see(row.get_by_role("img", name="Logit lens: 2 × 2 numbers from 0.1000 to 0.9000")).to_be_visible()
    rows = "<tr><th>tokens</th><td>57 </td><td></td></tr><tr><th>cells</th><td>9 </td><td>All</td></tr>"
    style, main = "<style>p { color: red }</style>", f"<main><h1>Lens</h1><p>Drawn</p><table>{rows}</table></main>"
    report = f"<html><head>{style}</head><body>{main}</body></html>"
    page.route(f"**/v1/jobs/{job}/result", lambda route: route.fulfill(body=report, content_type="text/html"))
    page.reload()
    row.get_by_role("button", name="Result").click()
    see(row.locator("h2")).to_have_text("Lens")
    assert kept(page, "Table 1 as CSV", "table-1.csv") == b"name,value,note\ntokens,57,\ncells,9,All\n"
    for kind, ending in {"text/plain": "txt", "image/svg+xml": "svg", "text/html; charset=x": "html"}.items():
        page.route(f"**/v1/jobs/{job}/result", lambda route, *, kind=kind: route.fulfill(content_type=kind))
        kept(row, "Download", f"{job}.{ending}")


def test_all_pictures_are_exported_together_without_what_was_rejected(page, see):
    page.goto("/console/segment")
    choose(page, _file("a.jpg"), _file("b.jpg", photograph(200, 100)))
    see(page.get_by_role("option", name="b.jpg, done")).to_be_visible()
    page.get_by_role("list", name="Findings").focus()
    press(page, "j", "x")
    coco = json.loads(kept(page, "All as COCO", "coco.json"))
    assert [image["file_name"] for image in coco["images"]] == ["a.jpg", "b.jpg"]
    boxes = [(one["image_id"], one["bbox"]) for one in coco["annotations"]]
    assert boxes == [(0, [100, 40, 40, 50]), (1, [10, 20, 50, 60]), (1, [100, 40, 40, 50])]
    assert len(kept(page, "All as CSV", "findings.csv").splitlines()) == 5
    with zipfile.ZipFile(io.BytesIO(kept(page, "All as ZIP, with YOLO labels", "results.zip"))) as archive:
        assert (archive.testzip(), Image.open(archive.open("masks/b.png")).size) == (None, (200, 100))
        assert (len(archive.read("labels/a.txt").splitlines()), archive.read("labels/classes.txt")) == (1, b"region\n")
        assert json.loads(archive.read("answers/a.json"))["width"] == 320
    page.locator("#model").select_option("disc-large")  # asks it about the picture that is shown alone
    see(page).to_have_url(re.compile("model=disc-large"))
    see(page.get_by_role("option", name="a.jpg, done")).to_be_visible()
    wait_until(lambda: b"disc-large" in kept(page, "All as CSV", "findings.csv"))
    head, *rows = kept(page, "All as CSV", "findings.csv").decode().splitlines()
    assert head.startswith("file,model,region,")
    assert {tuple(row.split(",")[:2]) for row in rows} == {("a.jpg", "disc-large"), ("b.jpg", "disc")}
    models = [one["model"] for one in json.loads(kept(page, "All as COCO", "coco.json"))["images"]]
    assert models == ["disc-large", "disc"]
    with zipfile.ZipFile(io.BytesIO(kept(page, "All as ZIP, with YOLO labels", "results.zip"))) as archive:
        assert {"masks/disc-large/a.png", "labels/disc/b.txt", "answers/disc/b.json"} <= {*archive.namelist()}


DROP = """(data) => {
  const bytes = Uint8Array.from(atob(data), (each) => each.charCodeAt(0));
  const file = () => new File([bytes], "p.jpg", { type: "image/jpeg" });
  const leaf = (fullPath) => ({ isDirectory: false, fullPath, file: (done) => done(file()) });
  const list = (entries) => ({ readEntries: (done) => done(entries.splice(0)) });
  const folder = (...entries) => ({ isDirectory: true, createReader: () => list(entries) });
  const gone = { fullPath: "/road/gone.jpg", file: (done, fail) => fail(new DOMException("gone", "NotFoundError")) };
  const road = folder(gone, folder(leaf("/road/a/p.jpg")), folder(leaf("/road/b/p.jpg")));
  const loose = new File([bytes], "loose.jpg");
  const item = (entry) => ({ kind: "file", webkitGetAsEntry: () => entry, getAsFile: () => loose });
  const dataTransfer = { types: ["Files"], items: bytes.length ? [item(road), item(leaf())] : [item(folder())] };
  document.querySelector("fovea-drop").target.dispatchEvent(Object.assign(new Event("drop"), { dataTransfer }));
}"""


def test_pictures_of_one_name_in_a_dropped_folder_are_exported_with_their_folders_without_one_that_is_gone(page, see):
    page.goto("/console/segment")
    page.evaluate(DROP, "")
    see(page.get_by_role("alert")).to_contain_text("There is no image in what was dropped.")
    page.evaluate(DROP, base64.b64encode(PICTURE["buffer"]).decode())
    see(page.get_by_role("option", name="p.jpg, done")).to_have_count(2)
    see(page.get_by_role("option", name="loose.jpg, done")).to_be_visible()
    coco = json.loads(kept(page, "All as COCO", "coco.json"))
    assert [image["file_name"] for image in coco["images"]] == ["road/a/p.jpg", "road/b/p.jpg", "loose.jpg"]
    assert coco["annotations"][0]["id"] == 1
    assert b"\nroad/b/p.jpg," in kept(page, "All as CSV", "findings.csv")
    with zipfile.ZipFile(io.BytesIO(kept(page, "All as ZIP, with YOLO labels", "results.zip"))) as archive:
        assert {"labels/road/a/p.txt", "labels/road/b/p.txt", "masks/road/b/p.png"} <= {*archive.namelist()}


@pytest.fixture
def two_models(stage):
    stage.stub.cards["disc-large"]["ready"] = True
    listed = f"{stage.url}/v1/models"  # the gateway keeps its list for a moment
    wait_until(lambda: all(one["ready"] for one in httpx2.get(listed).json()["data"]))
    yield
    stage.stub.cards["disc-large"]["ready"] = False


def test_two_models_on_one_picture_show_failures_and_their_difference_and_zoom_together(
    page, see, two_models, complaints
):
    open_with_picture(page)
    page.get_by_role("button", name="Compare models").click()
    part = page.get_by_role("region", name="Models side by side")
    part.get_by_label("disc-large").uncheck()
    see(part.get_by_role("button", name="Compare")).to_be_disabled()
    part.get_by_label("disc-large").check()
    _answer(page, {"status": 503, "title": "Not ready", "detail": "No replica is ready."})
    part.get_by_role("button", name="Compare").click()
    see(page.locator(".pane").nth(1)).to_contain_text("Failed: No replica is ready.")
    complaints.clear()
    page.unroute("**/v1/segment")
    part.get_by_role("button", name="Compare").click()
    see(part.locator("figure")).to_have_count(3)
    verdict = part.locator("[data-part=agreement]")
    told = "disc and disc-large: 64.1 % of the area that either marks is marked by both (IoU 0.641, Dice 0.782)."
    see(verdict).to_have_text(told)
    see(part.locator("tbody tr")).to_have_count(2)
    see(part.locator("tbody tr").first).to_contain_text("Region 1: 4,122 px")
    views = part.locator("fovea-viewer")
    views.nth(1).focus()
    press(page, "+", "+")
    see(views.nth(2)).to_have_attribute("data-zoom", "2")
    views.nth(1).evaluate("view => { view.scrollLeft = 90; view.scrollTop = 40; }")
    page.wait_for_function("() => document.querySelectorAll('.pane fovea-viewer')[0].scrollLeft === 90")
    part.get_by_role("button", name="Fit all").click()
    see(views.nth(0)).to_have_attribute("data-zoom", "0")
    page.locator("#live-threshold").fill("0.9")
    see(verdict).not_to_contain_text("64.1 %")
    assert kept(page, "Table as CSV", "a.models.csv").decode().splitlines()[0] == "finding,disc,disc-large"
    check_page(page)
    choose(page, _file("b.jpg"), _file("c.jpg"))
    see(verdict).to_be_hidden()  # it is of the first


def test_the_error_of_a_picture_stays_while_others_run_and_is_shown_again(page, see, complaints):
    held = []
    page.route("**/v1/segment", lambda route: held.append(route) or (len(held) == 1 and route.continue_()))
    page.goto("/console/segment")
    choose(page, _file("c.txt", b"nope", "text/plain"), _file("a.jpg"), _file("b.jpg", photograph(200, 100)))
    frames = page.get_by_role("listbox", name="Images").get_by_role("option")
    see(frames.nth(1)).to_have_attribute("aria-label", "a.jpg, runs")
    alert = page.get_by_role("alert")
    see(alert).to_contain_text("The bytes are not a picture.")
    frames.nth(2).click()
    see(alert).to_be_hidden()
    frames.nth(0).click()
    see(alert).to_contain_text("The bytes are not a picture.")
    see(frames.nth(1)).to_have_attribute("aria-label", "a.jpg, runs")
    held[1].continue_()
    see(frames.nth(2)).to_have_attribute("aria-label", "b.jpg, runs")
    see(alert).to_contain_text("The bytes are not a picture.")
    held[2].continue_()
    see(frames.nth(2)).to_have_attribute("aria-label", "b.jpg, done")
    complaints.clear()


SLOW = """(() => {
    const decode = createImageBitmap;
    const held = [];
    window.release = () => { window.holds = false; held.splice(0).forEach((go) => go()); };
    window.heldCount = () => held.length;
    window.createImageBitmap = async (source, ...rest) => {
        const picture = await decode(source, ...rest);
        if (window.holds && picture.width === 320) await new Promise((go) => held.push(go));
        return picture;
    };
})()"""


def test_a_mask_that_is_read_late_is_not_drawn_on_another_picture(page, see):
    page.add_init_script(SLOW)
    page.goto("/console/segment")
    choose(page, _file("a.jpg"), _file("b.jpg", photograph(200, 100)))
    frames = page.get_by_role("listbox", name="Images").get_by_role("option")
    see(frames.nth(1)).to_have_attribute("aria-label", "b.jpg, done")
    image = "document.querySelector('[data-part=canvas]').toDataURL()"
    frames.nth(1).click()
    see(page.locator("[data-part=name]")).to_contain_text("b.jpg")
    see(page.locator("[data-part=result]")).to_be_visible()
    page.wait_for_timeout(200)
    before = page.evaluate(image)
    frames.nth(0).click()
    see(page.locator("[data-part=name]")).to_contain_text("a.jpg")
    frames.nth(1).click()
    see(page.locator("[data-part=name]")).to_contain_text("b.jpg")
    page.evaluate("window.holds = true")
    frames.nth(0).click()
    page.wait_for_timeout(100)
    page.evaluate("window.release(); window.holds = true")  # the picture is there, its mask is not
    see(page.locator("[data-part=name]")).to_contain_text("a.jpg")
    frames.nth(1).click()
    see(page.locator("[data-part=name]")).to_contain_text("b.jpg")
    page.wait_for_timeout(200)
    page.evaluate("window.release()")
    page.wait_for_timeout(300)
    assert page.evaluate(image) == before


@pytest.fixture
def segmented(page):
    run_example(page, "segment")
    return page


def shown(page):
    drawn(page)
    return page.locator("canvas").evaluate("canvas => canvas.toDataURL()")


def test_the_models_own_numbers_are_shown_looks_change_the_picture_only_and_all_can_be_kept(segmented, stage, see):
    answer = httpx2.post(f"{stage.url}/v1/segment", files={"image": PICTURE["buffer"]}).json()
    figures = [figure(segmented, name) for name in ("area", "share", "highest", "mean", "regions")]
    shares = [f"{answer[name]:.3f}" for name in ("max_probability", "mean_probability")]
    assert figures == [f"{answer['area']:,} px", f"{answer['area_percent']:.1f} %", *shares, "1"]
    assert "10.7 percent" in (segmented.locator("canvas").get_attribute("aria-label") or "")
    box = segmented.locator("[data-part=canvas]").bounding_box()
    segmented.mouse.move(box["x"] + 0.6 * box["width"], box["y"] + 0.45 * box["height"])
    see(segmented.locator("[data-part=pixel]")).to_have_text(re.compile(r"Pixel 19\d, 10\d: probability 0\.9\d\d"))
    looks = {shown(segmented)}
    segmented.locator("#live-opacity").fill("0.9")
    looks.add(shown(segmented))
    segmented.locator("#live-outline").uncheck()
    looks.add(shown(segmented))
    segmented.locator("#live-heat").check()
    assert (len(looks | {shown(segmented)}), figure(segmented, "area")) == (4, figures[0])
    assert json.loads(kept(segmented, "JSON", "example.json"))["area"] == answer["area"]
    mask = np.asarray(Image.open(io.BytesIO(kept(segmented, "Mask", "example.mask.png"))))
    assert (mask > 0).sum() == answer["area"]
    assert Image.open(io.BytesIO(kept(segmented, "Overlay", "example.overlay.png"))).size == (320, 240)


def test_threshold_moves_on_the_client_alone_and_another_model_runs_again(segmented, stage, see):
    before = len(stage.stub.seen)
    segmented.locator("#live-threshold").fill("0.9")
    see(segmented.locator("[data-part=threshold-figure]")).to_have_text("0.900")
    see(segmented.locator("[data-part=area]")).not_to_have_text("8,245 px")
    asked = {"files": {"image": PICTURE["buffer"]}, "data": {"threshold": "0.9"}}
    answer = httpx2.post(f"{stage.url}/v1/segment", **asked).json()
    moved = int(figure(segmented, "area").replace(",", "").removesuffix(" px"))
    assert moved == pytest.approx(answer["area"], rel=0.02)
    assert len(stage.stub.seen) == before + 1
    segmented.locator("#live-threshold").fill("1")
    see(segmented.locator("[data-part=verdict]")).to_contain_text("No region above 1.00")
    segmented.locator("#model").select_option("disc-large")
    see(segmented).to_have_url(re.compile("model=disc-large"))
    see(segmented.get_by_text("Card, licence and limits")).to_have_attribute("href", "/console/models/disc-large")
    wait_until(lambda: stage.stub.seen[-1]["options"]["model"] == "disc-large")
    see(segmented.locator("[data-part=go]")).to_be_enabled()


def arithmetic(page, field, **settings):
    """Mask, regions and tally of the page's own module for a map of bytes (rows, columns)."""
    height, width = field.shape
    return page.evaluate(
        """async ([map, width, height, settings]) => {
            const { thresholdMask, measure } = await import('/console/static/js/mask.js');
            const bytes = Uint8Array.from(map);
            const { mask, regions } = thresholdMask(bytes, width, height, settings);
            return { mask: [...mask], regions, ...measure(bytes, mask) };
        }""",
        [field.ravel().tolist(), width, height, settings],
    )


def test_regions_and_numbers_are_what_scipy_finds_and_small_ones_are_dropped_or_the_largest_kept_alone(page):
    page.goto("/console/segment")
    for seed in range(5):
        rng = np.random.default_rng(seed)
        smooth = ndimage.gaussian_filter(rng.random((37, 61)), 1.5)
        field = np.round(255 * (smooth - smooth.min()) / np.ptp(smooth)).astype(np.uint8)
        threshold = float(rng.uniform(0.3, 0.8))
        within = field >= np.ceil(threshold * 255)
        labels, _ = ndimage.label(within, structure=np.ones((3, 3)))
        sizes = sorted(np.bincount(labels.ravel())[1:].tolist(), reverse=True)
        assert arithmetic(page, field, threshold=threshold) == {
            "mask": within.astype(int).ravel().tolist(), "regions": sizes, "area": within.sum(), "highest": 1.0,
            "mean": pytest.approx(field[within].mean() / 255),
        }  # fmt: skip
    field = np.zeros((6, 12), np.uint8)
    field[0, 0] = field[2:4, 3:5] = field[3:6, 8:12] = 255
    for settings, regions in (({}, [12, 4, 1]), ({"minArea": 2}, [12, 4]), ({"keepLargest": True}, [12])):
        assert arithmetic(page, field, threshold=0.5, **settings)["regions"] == regions
    nothing = {"mask": [0] * 72, "regions": [], "area": 0, "mean": 0, "highest": 1}
    assert arithmetic(page, field, threshold=0.5, minArea=13) == nothing
    every = np.arange(256, dtype=np.uint8).reshape(16, 16)
    for threshold, cut in ((0, 0), (0.5, 128), (1, 255), (1 / 255, 1), (0.2, 51), (0.201, 52)):
        assert arithmetic(page, every, threshold=threshold)["area"] == 256 - cut
