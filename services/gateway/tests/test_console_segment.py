"""The segment page in a real browser: pictures in, masks that move with the sliders, files to keep."""

import io
import json
import re

import httpx2
import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from services.gateway.tests.browsing import MARKS, choose, drawn, figure, kept, run_example
from services.gateway.tests.stub_service import photograph
from tests.harness.waiting import wait_until

pytestmark = MARKS

PICTURE = photograph()


@pytest.fixture
def segmented(page):
    run_example(page, "segment")
    return page


def shown(page):
    drawn(page)
    return page.locator("canvas").evaluate("canvas => canvas.toDataURL()")


def test_the_models_own_numbers_are_shown_looks_change_the_picture_only_and_all_can_be_kept(segmented, stage, see):
    answer = httpx2.post(f"{stage.url}/v1/segment", files={"image": PICTURE}).json()
    figures = [figure(segmented, name) for name in ("area", "share", "highest", "mean", "regions")]
    assert figures == [
        f"{answer['area']:,} px", f"{answer['area_percent']:.1f} %", f"{answer['max_probability']:.3f}",
        f"{answer['mean_probability']:.3f}", "1",
    ]  # fmt: skip
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
    assert len(looks | {shown(segmented)}) == 4
    assert figure(segmented, "area") == figures[0]
    assert json.loads(kept(segmented, "JSON", "example.json"))["area"] == answer["area"]
    mask = np.asarray(Image.open(io.BytesIO(kept(segmented, "Mask", "example.mask.png"))))
    assert (mask > 0).sum() == answer["area"]
    assert Image.open(io.BytesIO(kept(segmented, "Overlay", "example.overlay.png"))).size == (320, 240)


def test_threshold_moves_on_the_client_alone_and_another_model_runs_again(segmented, stage, see):
    asked = len(stage.stub.seen)
    segmented.locator("#live-threshold").fill("0.9")
    see(segmented.locator("[data-part=threshold-figure]")).to_have_text("0.900")
    see(segmented.locator("[data-part=area]")).not_to_have_text("8,245 px")
    answer = httpx2.post(f"{stage.url}/v1/segment", files={"image": PICTURE}, data={"threshold": "0.9"}).json()
    moved = int(figure(segmented, "area").replace(",", "").removesuffix(" px"))
    assert moved == pytest.approx(answer["area"], rel=0.02)
    assert len(stage.stub.seen) == asked + 1
    segmented.locator("#live-threshold").fill("1")
    see(segmented.locator("[data-part=verdict]")).to_contain_text("No region above 1.00")
    segmented.locator("#model").select_option("disc-large")
    see(segmented).to_have_url(re.compile("model=disc-large"))
    see(segmented.get_by_text("Card, licence and limits")).to_have_attribute("href", "/console/models/disc-large")
    wait_until(lambda: stage.stub.seen[-1]["options"]["model"] == "disc-large")
    see(segmented.locator("[data-part=go]")).to_be_enabled()


def test_a_chosen_picture_is_sent_with_the_options_of_the_form(page, stage, see):
    page.goto("/console/segment")
    page.locator("#option-min_area").fill("12")
    page.locator("#option-normalise").select_option(label="minmax")
    choose(page, {"name": "mine.jpg", "mimeType": "image/jpeg", "buffer": PICTURE})
    page.locator("[data-part=result]").wait_for()
    see(page.locator("[data-part=name]")).to_have_text("mine.jpg, 320 × 240")
    sent = stage.stub.seen[-1]
    assert sent["bytes"] == len(PICTURE)
    wanted = {"min_area": "12", "normalise": "minmax", "model": "disc", "threshold": "0.5"}
    assert sent["options"].items() >= wanted.items()


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


def test_regions_and_numbers_are_what_scipy_finds(page):
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


def test_small_regions_are_dropped_the_largest_can_be_kept_alone_and_a_threshold_belongs_to_the_inside(page):
    page.goto("/console/segment")
    field = np.zeros((6, 12), np.uint8)
    field[0, 0] = field[2:4, 3:5] = field[3:6, 8:12] = 255
    assert arithmetic(page, field, threshold=0.5)["regions"] == [12, 4, 1]
    assert arithmetic(page, field, threshold=0.5, minArea=2)["regions"] == [12, 4]
    assert arithmetic(page, field, threshold=0.5, keepLargest=True)["regions"] == [12]
    assert arithmetic(page, field, threshold=0.5, minArea=13) == {
        "mask": [0] * 72, "regions": [], "area": 0, "mean": 0, "highest": 1,
    }  # fmt: skip
    every = np.arange(256, dtype=np.uint8).reshape(16, 16)
    for threshold, cut in ((0, 0), (0.5, 128), (1, 255), (1 / 255, 1), (0.2, 51), (0.201, 52)):
        assert arithmetic(page, every, threshold=threshold)["area"] == 256 - cut
