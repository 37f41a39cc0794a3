"""Results corrected by hand in a real browser: boxes and masks, undo and redo, by pointer and key, and the exports."""

import base64
import csv
import io
import json
import re
import zipfile

import numpy as np
import pytest
from PIL import Image

from services.gateway.tests import browsing
from services.gateway.tests.browsing import MARKS, PICTURE, check_page, choose, drag, figure, kept, open_with_picture
from services.gateway.tests.stub_service import Stub
from services.gateway.tests.test_console_tasks import FORMS, Seeing

pytestmark = MARKS


class Marking(Seeing):
    """Detects as the tests of that page do, in a picture of 240 × 160, and segments as the stub does."""

    def __init__(self) -> None:
        super().__init__()
        self.cards["road"] |= {
            "details": {"classes": ["crack", "hole", "patch"]},
            "media_types": [*FORMS, "text/plain", "application/zip"],
        }
        self.cards["disc"] = Stub().cards["disc"]


SERVICE = Marking


@pytest.fixture
def boxes(page):
    browsing.run_example(page, "detect?model=road")
    page.locator("[data-part=classes] tr").first.wait_for()
    page.get_by_role("button", name="Correct", exact=True).click()
    page.locator("#edit-class option").nth(2).wait_for(state="attached")
    return page


@pytest.fixture
def mask(page):
    open_with_picture(page)
    page.get_by_role("button", name="Correct", exact=True).click()
    return page


def findings(page) -> list[str]:
    return [text.removesuffix("✓✗").strip() for text in page.locator(".finding > .figures").all_inner_texts()]


def table(page, stem) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(kept(page, "Findings as CSV", f"{stem}.findings.csv").decode())))


def test_boxes_are_drawn_moved_resized_renamed_and_deleted_with_the_pointer(boxes, see):
    drag(boxes, (20, 110), (60, 150), 240, 160)  # a new one
    see(boxes.locator(".finding")).to_have_count(3)
    assert findings(boxes)[2] == "crack, added by hand"
    boxes.locator("#edit-class").select_option("patch")
    drag(boxes, (70, 40), (80, 45), 240, 160)  # moves the first
    drag(boxes, (200, 60), (220, 60), 240, 160)  # the second is chosen first, by its middle …
    drag(boxes, (220, 60), (230, 60), 240, 160)  # … then its right side goes out
    see(boxes.locator("[data-part=found]")).to_have_text("3")
    see(boxes.locator("[data-part=edit-note]")).to_contain_text("crack: ")
    rows = table(boxes, "example")
    told = [f"{row['label']} {row['by_hand']}" for row in rows]
    assert told == ["crack changed", "crack changed", "patch added"]
    first = [float(rows[0][name]) for name in ("x1", "y1", "x2", "y2")]
    assert first == pytest.approx([30, 25, 130, 65], abs=2)
    added = [float(rows[2][name]) for name in ("x1", "y1", "x2", "y2")]
    assert added == pytest.approx([20, 110, 60, 150], abs=2)
    assert (rows[2]["score"], rows[0]["score"]) == ("", "0.9")
    boxes.get_by_role("button", name="Delete box").click()
    see(boxes.locator(".finding")).to_have_count(2)
    rows = table(boxes, "example")
    assert [(row["by_hand"], row["score"]) for row in rows] == [("changed", "0.9"), ("added", ""), ("deleted", "0.6")]
    check_page(boxes)


def test_boxes_are_corrected_by_keys_with_undo_and_redo(boxes, see):
    see(boxes.locator("fovea-viewer").first).to_be_focused()
    for key in ("j", "ArrowRight", "ArrowRight", "Shift+ArrowDown", "Alt+ArrowRight", "2"):
        boxes.keyboard.press(key)
    expected = [{"label": "hole", "x1": "22", "y1": "30", "x2": "123", "y2": "70", "by_hand": "changed"}]
    assert [{name: row[name] for name in expected[0]} for row in table(boxes, "example")[:1]] == expected
    boxes.locator("fovea-viewer").first.focus()
    boxes.keyboard.press("Control+z")
    boxes.keyboard.press("Control+z")
    see(boxes.locator(".finding").first).to_contain_text("crack 0.90, changed by hand")
    for _ in range(3):
        boxes.keyboard.press("Control+z")
    assert findings(boxes) == ["crack 0.90", "crack 0.60"]
    see(boxes.get_by_role("button", name="Undo")).to_be_disabled()
    for _ in range(2):
        boxes.keyboard.press("Control+Shift+z")
    assert float(table(boxes, "example")[0]["y1"]) == 30
    boxes.locator("fovea-viewer").first.focus()
    boxes.keyboard.press("n")
    boxes.keyboard.press("Delete")
    boxes.keyboard.press("j")
    boxes.keyboard.press("Delete")
    assert len(findings(boxes)) == 1
    boxes.get_by_role("button", name="Reset").click()
    assert findings(boxes) == ["crack 0.90", "crack 0.60"]
    boxes.get_by_role("button", name="Done").click()
    see(boxes.get_by_role("button", name="Correct", exact=True)).to_be_focused()


def test_every_export_has_the_corrected_boxes_without_the_rejected(boxes, stage, see):
    asked = len(stage.stub.seen)
    drag(boxes, (20, 110), (60, 150), 240, 160)
    boxes.locator("#edit-class").select_option("patch")
    boxes.locator(".findings-list").focus()
    boxes.keyboard.press("ArrowDown")
    boxes.keyboard.press("ArrowDown")
    boxes.keyboard.press("x")  # the second of the model
    see(boxes.locator(".finding").nth(1)).to_have_attribute("data-state", "rejected")
    coco = json.loads(kept(boxes, "COCO", "example.coco.json"))
    assert [one["name"] for one in coco["categories"]] == ["crack", "patch"]
    told = [(one["category_id"], one.get("attributes")) for one in coco["annotations"]]
    assert told == [(0, None), (1, {"by_hand": "added"})]
    assert [line.split()[0] for line in kept(boxes, "YOLO", "example.txt").decode().splitlines()] == ["0", "1"]
    rows = csv.DictReader(kept(boxes, "CSV", "example.csv").decode().splitlines())
    assert [row["verdict"] for row in rows] == ["", "rejected", ""]
    answer = json.loads(kept(boxes, "JSON", "example.json"))
    assert answer["counts"] == {"crack": 1, "patch": 1}
    assert [one.get("by_hand") for one in answer["detections"]] == [None, "added"]
    with zipfile.ZipFile(io.BytesIO(kept(boxes, "Crops", "example.crops.zip"))) as archive:
        assert archive.namelist() == ["001-crack.png", "002-patch.png"]
        assert Image.open(archive.open("002-patch.png")).size == pytest.approx((40, 40), abs=2)
    assert Image.open(io.BytesIO(kept(boxes, "Picture", "example.boxes.png"))).size == (240, 160)
    assert len(stage.stub.seen) == asked  # none of them is of the model's own boxes


def test_corrections_outlive_a_new_result_and_a_reload(boxes, see):
    boxes.keyboard.press("j")
    boxes.keyboard.press("Delete")
    assert findings(boxes) == ["crack 0.60"]
    with boxes.expect_response("**/v1/detect"):
        boxes.locator("#live-iou").fill("0.7")
    see(boxes.locator("[data-part=edit-note]")).to_contain_text("Undo brings your corrections back")
    see(boxes.locator(".finding")).to_have_count(2)
    boxes.get_by_role("button", name="Undo").click()
    see(boxes.locator(".finding")).to_have_count(1)
    boxes.locator("fovea-viewer").first.focus()
    boxes.keyboard.press("j")
    boxes.keyboard.press("2")
    see(boxes.locator(".finding")).to_contain_text("hole 0.60, changed by hand")
    boxes.wait_for_timeout(1600)  # a run is amended a moment after the last correction
    boxes.reload()
    see(boxes.locator(".finding")).to_have_text(["hole 0.60, changed by hand✓✗"])
    assert [row["by_hand"] for row in table(boxes, "example")] == ["changed", "deleted"]


@pytest.mark.parametrize("task", ["segment", "detect"])
def test_an_answer_that_should_not_be_believed_says_so_and_its_figures_fade(page, see, task):
    words = "This image does not look like the training images (distance 1.80; usual maximum 1.65)."

    def warn(route):
        route.fulfill(json={**route.fetch().json(), "warnings": [words]})

    page.goto(f"/console/{task}")
    page.route(f"**/v1/{task}", warn)
    choose(page)
    see(page.locator("[data-part=verdict]")).to_have_text(words)
    see(page.locator("[data-part=figures]")).to_have_class("figures-row doubtful")


def area(page) -> int:
    browsing.drawn(page)
    return int(figure(page, "area").replace(",", "").removesuffix(" px"))


def test_a_mask_is_painted_and_erased_with_undo_and_exported(mask, see):
    before = area(mask)
    drag(mask, (20, 20), (60, 20), 320, 240)
    see(mask.locator("[data-part=edit-note]")).to_contain_text("Painted.")
    see(mask.locator(".finding")).to_have_count(2)
    painted = area(mask)
    assert painted > before + 400
    assert "added by hand" in findings(mask)[1]
    mask.get_by_role("button", name="Eraser").click()
    drag(mask, (192, 60), (192, 160), 320, 240)
    assert area(mask) < painted
    assert findings(mask)[0].endswith("changed by hand")
    erased = area(mask)
    mask.get_by_role("button", name="Undo").click()
    assert area(mask) == painted
    mask.get_by_role("button", name="Redo").click()
    assert area(mask) == erased
    saved = np.asarray(Image.open(io.BytesIO(kept(mask, "Mask", "a.mask.png")))) > 0
    saved = saved[..., 0] if saved.ndim == 3 else saved
    assert saved.sum() == erased
    assert saved[20, 40]
    assert not saved[108, 192]
    answer = json.loads(kept(mask, "JSON", "a.json"))
    assert (answer["area"], answer["is_corrected"]) == (erased, True)
    inside = np.asarray(Image.open(io.BytesIO(base64.b64decode(answer["mask"]))).convert("L")) > 0
    assert (inside == saved).all()
    assert [row["by_hand"] for row in table(mask, "a")] == ["changed", "changed", "added"]
    check_page(mask)


def test_a_mask_is_corrected_by_keys_and_a_region_is_deleted(mask, see):
    mask.locator("fovea-viewer").first.focus()
    before = area(mask)
    for key in ("e", "]", "]", "Space", "Shift+ArrowLeft", "Space"):
        mask.keyboard.press(key)
    see(mask.locator("[data-part=edit-note]")).to_contain_text("Erased.")
    assert area(mask) < before
    mask.keyboard.press("Control+y")
    for _ in range(3):
        mask.keyboard.press("Control+z")
    assert area(mask) == before
    mask.locator("fovea-viewer").first.focus()
    mask.keyboard.press("b")
    drag(mask, (20, 20), (60, 20), 320, 240)
    mask.locator(".finding").first.click()
    mask.get_by_role("button", name="Delete region").click()
    see(mask.locator("[data-part=edit-note]")).to_contain_text("Deleted the region.")


def test_corrected_masks_stay_with_their_picture_and_go_into_the_archive(mask, see):
    drag(mask, (20, 20), (60, 20), 320, 240)
    see(mask.locator(".finding")).to_have_count(2)
    corrected = area(mask)
    choose(mask, {**PICTURE, "name": "b.jpg"})
    see(mask.get_by_role("option", name="b.jpg, done")).to_be_visible()
    see(mask.locator("[data-part=name]")).to_contain_text("b.jpg")
    assert area(mask) != corrected
    see(mask.get_by_role("button", name="Undo")).to_be_disabled()
    with zipfile.ZipFile(io.BytesIO(kept(mask, "All as ZIP, with YOLO labels", "results.zip"))) as archive:
        masks = [np.asarray(Image.open(archive.open(f"masks/{name}.png")).convert("L")) > 0 for name in "ab"]
        assert masks[0].sum() == corrected > masks[1].sum()
        rows = list(csv.DictReader(archive.read("findings.csv").decode().splitlines()))
    assert "added" in {row["by_hand"] for row in rows if row["file"] == "a.jpg"}
    assert {row["by_hand"] for row in rows if row["file"] == "b.jpg"} == {""}
    mask.get_by_role("option", name="a.jpg, done").click()
    see(mask.locator("[data-part=name]")).to_contain_text("a.jpg")
    assert area(mask) == corrected
    see(mask.get_by_role("button", name="Undo")).to_be_enabled()
    mask.locator("#live-threshold").fill("0.9")  # every export is of the masks at the threshold that is shown
    see(mask.locator(".finding").first).to_contain_text(re.compile(r"Region 1: [1-6],\d{3} px"))
    coco = json.loads(kept(mask, "All as COCO", "coco.json"))
    shapes = [decode_runs(one["segmentation"]) for one in coco["annotations"]]
    assert [one["image_id"] for one in coco["annotations"]] == [0, 0, 1]
    assert [shape.sum() for shape in shapes] == [one["area"] for one in coco["annotations"]]
    assert shapes[0].sum() + shapes[1].sum() == area(mask) < corrected
    assert shapes[1][20, 40]
    assert (shapes[0] == shapes[2]).all()


def decode_runs(found: dict) -> np.ndarray:
    height, width = found["size"]
    inside = np.repeat(np.arange(len(found["counts"])) % 2 == 1, found["counts"])
    return inside.reshape(width, height).T
