"""The segment page in a real browser: pictures in, masks that move with the sliders, files to keep."""

import io
import json
import re

import httpx2
import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from services.gateway.tests.browsing import MARKS, drawn, figure, kept
from services.gateway.tests.stub_service import photograph
from tests.harness.waiting import wait_until

pytestmark = MARKS

PICTURE = photograph()


def segmented(page):
    page.goto("/console/segment")
    page.get_by_role("button", name="Use the model’s example").click()
    page.locator("[data-part=result]").wait_for()


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
    see(page.locator("[data-part=verdict]")).to_contain_text("No region above 1.00")


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
    drawn(page)
    return page.locator("canvas").evaluate("canvas => canvas.toDataURL()")


def test_the_probability_under_the_pointer_is_told(page, see):
    segmented(page)
    canvas = page.locator("[data-part=canvas]")
    box = canvas.bounding_box()
    page.mouse.move(box["x"] + 0.6 * box["width"], box["y"] + 0.45 * box["height"])
    see(page.locator("[data-part=pixel]")).to_have_text(re.compile(r"Pixel 19\d, 10\d: probability 0\.9\d\d"))


def test_mask_overlay_and_json_can_be_kept(page, stage):
    segmented(page)
    answer = httpx2.post(f"{stage.url}/v1/segment", files={"image": PICTURE}).json()
    assert json.loads(kept(page, "JSON", "example.json"))["area"] == answer["area"]
    mask = np.asarray(Image.open(io.BytesIO(kept(page, "Mask", "example.mask.png"))))
    assert (mask > 0).sum() == answer["area"]
    assert Image.open(io.BytesIO(kept(page, "Overlay", "example.overlay.png"))).size == (320, 240)


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
        "min_area": "12",
        "normalise": "minmax",
        "model": "disc",
        "threshold": "0.5",
    }


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
    wait_until(lambda: stage.stub.seen[-1]["options"]["model"] == "disc-large")


def test_a_segmentation_can_run_as_a_job_and_comes_back_to_the_page(page, stage, see):
    page.goto("/console/segment")
    page.locator("#as-job").check()
    page.get_by_role("button", name="Use the model’s example").click()
    see(page.locator("[data-part=progress-note]")).to_contain_text("of 5")
    page.locator("[data-part=result]").wait_for()
    assert figure(page, "area") == "8,245 px"
    assert list(stage.queue.jobs.values())[-1].status == "succeeded"


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


@pytest.mark.parametrize("seed", range(5))
def test_regions_and_numbers_are_what_scipy_finds(page, seed):
    page.goto("/console/segment")
    rng = np.random.default_rng(seed)
    smooth = ndimage.gaussian_filter(rng.random((37, 61)), 1.5)
    field = np.round(255 * (smooth - smooth.min()) / np.ptp(smooth)).astype(np.uint8)
    threshold = float(rng.uniform(0.3, 0.8))
    found = arithmetic(page, field, threshold=threshold)
    within = field >= np.ceil(threshold * 255)
    labels, count = ndimage.label(within, structure=np.ones((3, 3)))
    sizes = sorted(np.bincount(labels.ravel())[1:].tolist(), reverse=True)
    assert found["mask"] == within.astype(int).ravel().tolist()
    assert (len(found["regions"]), found["regions"]) == (count, sizes)
    assert found["area"] == within.sum()
    assert found["highest"] == 1.0
    assert found["mean"] == pytest.approx(field[within].mean() / 255)


def test_small_regions_are_dropped_and_the_largest_can_be_kept_alone(page):
    page.goto("/console/segment")
    field = np.zeros((6, 12), np.uint8)
    field[0, 0] = field[2:4, 3:5] = field[3:6, 8:12] = 255
    assert arithmetic(page, field, threshold=0.5)["regions"] == [12, 4, 1]
    assert arithmetic(page, field, threshold=0.5, minArea=2)["regions"] == [12, 4]
    assert arithmetic(page, field, threshold=0.5, keepLargest=True)["regions"] == [12]
    assert arithmetic(page, field, threshold=0.5, minArea=13) == {
        "mask": [0] * 72, "regions": [], "area": 0, "mean": 0, "highest": 1,
    }  # fmt: skip


@pytest.mark.parametrize(("threshold", "cut"), [(0, 0), (0.5, 128), (1, 255), (1 / 255, 1), (0.2, 51), (0.201, 52)])
def test_the_threshold_belongs_to_the_inside(page, threshold, cut):
    page.goto("/console/segment")
    field = np.arange(256, dtype=np.uint8).reshape(16, 16)
    assert arithmetic(page, field, threshold=threshold)["area"] == 256 - cut
