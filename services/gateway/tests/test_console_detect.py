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
        asked = await self.note_form(request)
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


SERVICE = Detecting


@pytest.fixture
def detected(page):
    page.goto("/console/detect?model=road")
    page.get_by_role("button", name="Use the model’s example").click()
    page.locator("[data-part=result]").wait_for()
    page.locator("[data-part=classes] tr").first.wait_for()
    return page


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


def test_confidence_moves_on_the_client_until_it_falls_below_what_was_asked(detected, stage, see):
    found, confidence = detected.locator("[data-part=found]"), detected.locator("#live-confidence")
    assert (figure(detected, "found"), rows(detected)) == ("2", ["crack 2 0.75 12.5"])
    assert strokes(detected) > 0
    label = detected.locator("[data-part=canvas]").get_attribute("aria-label")
    assert label == "example with 2 boxes: 2 crack"
    asked = len(stage.stub.seen)
    confidence.fill("0.15")
    see(found).to_have_text("3")
    assert rows(detected) == ["crack 2 0.75 12.5", "hole 1 0.20 12.5"]
    confidence.fill("0.95")
    see(detected.locator("[data-part=verdict]")).to_contain_text("No objects above 0.95. Highest score: 0.90")
    assert len(stage.stub.seen) == asked
    with detected.expect_response("**/v1/detect"):
        confidence.fill("0.01")
    see(found).to_have_text("3")
    assert [each["confidence"] for each in stage.stub.seen[asked:]] == ["0.01"]
    with detected.expect_response("**/v1/detect"):  # as does another overlap
        detected.locator("#live-iou").fill("0.7")
    see(detected.locator("[data-part=stop]")).to_be_hidden()
    assert [each["iou"] for each in stage.stub.seen[asked + 1 :]] == ["0.7"]


def test_files_come_from_the_service_with_what_is_shown_and_without_a_hidden_class(detected, stage, see):
    detected.locator("#live-names").uncheck()
    assert kept(detected, "Picture", "example.boxes.png") == b"a file of image/png"
    assert (stage.stub.seen[-1]["confidence"], stage.stub.seen[-1]["labels"]) == ("0.25", "false")
    assert kept(detected, "COCO", "example.coco.json") == b"a file of application/vnd.coco+json"
    assert detected.get_by_role("button", name="Crops").count() == 0  # this model has no such form
    detected.locator("#live-confidence").fill("0.1")
    see(detected.locator("[data-part=found]")).to_have_text("3")
    before = strokes(detected)
    detected.get_by_role("checkbox", name="hole").uncheck()
    see(detected.locator("[data-part=found]")).to_have_text("2 of 3")
    assert strokes(detected) < before
    assert kept(detected, "CSV", "example.csv") == b"a file of text/csv"
    assert (stage.stub.seen[-1]["confidence"], stage.stub.seen[-1]["classes"]) == ("0.1", '["crack"]')


def test_models_are_compared_box_by_box_and_the_other_tasks_are_one_click_away(detected, see):
    detected.locator("#live-confidence").fill("0.1")
    detected.get_by_role("button", name="Compare models").click()
    part = detected.get_by_role("region", name="Models side by side")
    part.get_by_role("button", name="Compare").click()
    see(part.locator("[data-part=agreement]")).to_have_text("The 2 models name the same class in 2 of 3 findings.")
    rows = part.locator("tbody tr").all_inner_texts()
    assert [row.split("\t")[1:] for row in rows] == [
        ["crack 0.90", "crack 0.90"], ["crack 0.60", "crack 0.60"], ["hole 0.20", "–"],
    ]  # fmt: skip
    check_page(detected)
    tasks = detected.get_by_role("navigation", name="Tasks of this service")
    assert tasks.get_by_role("link").all_inner_texts() == ["Detect", "Classify"]
    tasks.get_by_role("link", name="Classify").click()
    see(detected.get_by_role("heading", name="Classify")).to_be_visible()
    see(tasks.get_by_role("link", name="Classify")).to_have_attribute("aria-current", "page")
