"""The detect page in a real browser: boxes that follow the sliders, classes that can be hidden, files to keep."""

import base64
import io

import pytest
from PIL import Image
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from fovea.api.boxes import DetectIn, Detection, DetectOut
from fovea.api.timings import Times
from services.gateway.tests.browsing import MARKS, check_page, drawn, figure, kept
from services.gateway.tests.stage import running
from services.gateway.tests.stub_service import Stub, card

pytestmark = MARKS

FOUND = (
    ("crack", 0, (20, 20, 120, 60), 0.9),
    ("crack", 0, (150, 30, 200, 90), 0.6),
    ("hole", 1, (40, 90, 90, 130), 0.2),
)
FORMS = ["application/json", "image/png", "text/csv", "application/vnd.coco+json"]


def grey() -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (240, 160), (90, 90, 90)).save(out, "PNG")
    return out.getvalue()


class Detecting(Stub):
    def __init__(self) -> None:
        super().__init__()
        self.cards = {
            "road": card("road", "detect", DetectIn, media_types=FORMS),
            "slide": card("slide", "detect", DetectIn, media_types=FORMS),
            "patches/tiny": card("patches/tiny", "classify", DetectIn),
        }
        self.app.add_api_route("/v1/detect", self.detect, methods=["POST"], response_model=None)

    async def example(self, name: str) -> dict[str, object]:
        return {"model": None, "image": base64.b64encode(grey()).decode()}

    async def detect(self, request: Request) -> Response:
        """The boxes that score more than was asked for, or a file that names its form."""
        async with request.form() as form:
            asked = {name: value for name, value in form.items() if isinstance(value, str)}
        self.seen.append(asked)
        if (accept := request.headers["accept"]) in FORMS[1:]:
            return Response(f"a file of {accept}".encode(), media_type=accept)
        found = [
            Detection(box=box, score=score, label=label, class_id=kind, area=1.0, radius=12.5)
            for label, kind, box, score in FOUND
            if score > float(asked["confidence"]) and not (asked["model"] == "slide" and label == "hole")
        ]
        answer = DetectOut(
            model=asked["model"], version="1", engine="onnx", width=240, height=160, detections=found, counts={},
            times=Times(),
        )  # fmt: skip
        return JSONResponse(answer.model_dump(mode="json"))


@pytest.fixture(scope="module")
def stage(tmp_path_factory):
    with running(tmp_path_factory.mktemp("detecting"), Detecting()) as made:
        yield made


def detected(page):
    page.goto("/console/detect")
    page.get_by_role("button", name="Use the model’s example").click()
    page.locator("[data-part=result]").wait_for()
    page.locator("[data-part=classes] tr").first.wait_for()


def rows(page) -> list[str]:
    return [" ".join(text.split()) for text in page.locator("[data-part=classes] tr").all_inner_texts()]


def strokes(page) -> int:
    drawn(page)
    script = """canvas => {
        const { width, height } = canvas;
        const copy = Object.assign(document.createElement("canvas"), { width, height });
        const context = copy.getContext("2d", { willReadFrequently: true });
        context.drawImage(canvas, 0, 0);
        const { data } = context.getImageData(0, 0, width, height);
        let found = 0;
        for (let at = 0; at < data.length; at += 4) found += Math.abs(data[at] - 90) + Math.abs(data[at + 1] - 90) > 12;
        return found;
    }"""
    return page.locator("[data-part=canvas]").evaluate(script)


def test_the_boxes_above_the_confidence_are_drawn_and_counted_by_class(page):
    detected(page)
    assert figure(page, "found") == "2"
    assert rows(page) == ["crack 2 0.75 12.5"]
    assert strokes(page) > 0
    assert page.locator("[data-part=canvas]").get_attribute("aria-label") == "example with 2 boxes: 2 crack"


def test_confidence_moves_on_the_client_until_it_falls_below_what_was_asked(page, stage, see):
    detected(page)
    asked = len(stage.stub.seen)
    page.locator("#live-confidence").fill("0.15")
    see(page.locator("[data-part=found]")).to_have_text("3")
    assert rows(page) == ["crack 2 0.75 12.5", "hole 1 0.20 12.5"]
    page.locator("#live-confidence").fill("0.95")
    see(page.locator("[data-part=verdict]")).to_contain_text("No objects above 0.95. Highest score: 0.90")
    assert len(stage.stub.seen) == asked
    with page.expect_response("**/v1/detect"):
        page.locator("#live-confidence").fill("0.01")
    see(page.locator("[data-part=found]")).to_have_text("3")
    assert [each["confidence"] for each in stage.stub.seen[asked:]] == ["0.01"]


def test_another_overlap_asks_the_model_again(page, stage, see):
    detected(page)
    asked = len(stage.stub.seen)
    with page.expect_response("**/v1/detect"):
        page.locator("#live-iou").fill("0.7")
    see(page.locator("[data-part=stop]")).to_be_hidden()
    assert [each["iou"] for each in stage.stub.seen[asked:]] == ["0.7"]


def test_a_hidden_class_is_neither_drawn_nor_kept(page, stage, see):
    detected(page)
    page.locator("#live-confidence").fill("0.1")
    see(page.locator("[data-part=found]")).to_have_text("3")
    before = strokes(page)
    page.get_by_role("checkbox", name="hole").uncheck()
    see(page.locator("[data-part=found]")).to_have_text("2 of 3")
    assert strokes(page) < before
    assert kept(page, "CSV", "example.csv") == b"a file of text/csv"
    sent = stage.stub.seen[-1]
    assert (sent["confidence"], sent["classes"]) == ("0.1", '["crack"]')


def test_files_come_from_the_service_with_what_is_shown(page, stage):
    detected(page)
    page.locator("#live-names").uncheck()
    assert kept(page, "Picture", "example.boxes.png") == b"a file of image/png"
    assert (stage.stub.seen[-1]["confidence"], stage.stub.seen[-1]["labels"]) == ("0.25", "false")
    assert kept(page, "COCO", "example.coco.json") == b"a file of application/vnd.coco+json"
    assert page.get_by_role("button", name="Crops").count() == 0  # this model has no such form


def test_the_other_tasks_of_the_service_are_one_click_away(page, see):
    page.goto("/console/detect")
    tasks = page.get_by_role("navigation", name="Tasks of this service")
    assert tasks.get_by_role("link").all_inner_texts() == ["Detect", "Classify"]
    tasks.get_by_role("link", name="Classify").click()
    see(page.get_by_role("heading", name="Classify")).to_be_visible()
    see(tasks.get_by_role("link", name="Classify")).to_have_attribute("aria-current", "page")


def test_models_are_compared_box_by_box(page, see):
    page.goto("/console/detect?model=road")
    page.get_by_role("button", name="Use the model’s example").click()
    page.locator("[data-part=result]").wait_for()
    page.locator("#live-confidence").fill("0.1")
    page.get_by_role("button", name="Compare models").click()
    part = page.get_by_role("region", name="Models side by side")
    part.get_by_role("button", name="Compare").click()
    see(part.locator("[data-part=agreement]")).to_have_text("The 2 models name the same class in 2 of 3 findings.")
    rows = part.locator("tbody tr").all_inner_texts()
    assert [row.split("\t")[1:] for row in rows] == [
        ["crack 0.90", "crack 0.90"], ["crack 0.60", "crack 0.60"], ["hole 0.20", "–"],
    ]  # fmt: skip
    check_page(page)
