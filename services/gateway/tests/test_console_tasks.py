"""Pages of classes, boxes, restored pictures and actions in a real browser: results, sliders, files, comparisons."""

import base64
import io

import pytest
from PIL import Image
from pydantic import BaseModel, ConfigDict
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from fovea.api.arrays import ArrayBytes
from fovea.api.boxes import DetectIn, Detection, DetectOut
from fovea.api.classes import Candidate, Classified, ClassifyIn, ClassifyOut
from fovea.api.image import Times
from fovea.api.restore import Estimate, RestoreIn, RestoreOut, RestoreTimes
from services.gateway.tests.browsing import (
    MARKS,
    PICTURE,
    check_page,
    choose,
    drawn,
    figure,
    kept,
    open_with_picture,
    run_example,
)
from services.gateway.tests.stub_service import Stub, card, photograph

pytestmark = MARKS

FOUND = (
    ("crack", 0, (20, 20, 120, 60), 0.9), ("crack", 0, (150, 30, 200, 90), 0.6), ("hole", 1, (40, 90, 90, 130), 0.2),
)  # fmt: skip
FORMS = ["application/json", "image/png", "text/csv", "application/vnd.coco+json"]
BEFORE, AFTER = (200, 40, 40), (40, 40, 200)
MATRIX = b"a file of numbers"


def plain(colour: tuple[int, int, int], width: int = 320, height: int = 240) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (width, height), colour).save(out, "PNG")
    return out.getvalue()


class Matrices(BaseModel):
    """A request of a task without a page of its own."""

    model_config = ConfigDict(extra="forbid")

    features: ArrayBytes
    model: str | None = None
    semantics: ArrayBytes | None = None
    fps: float | None = None
    duration: float | None = None


class Seeing(Stub):
    """Classes by the place of a patch, boxes of a road, a restored picture, and one action in every video.

    The model `second` is less sure, and takes boots for shoes.
    """

    def __init__(self) -> None:
        super().__init__()
        self.cards = {name: card(name, "detect", DetectIn, media_types=FORMS) for name in ("road", "slide")}
        self.cards |= {name: card(name, "classify", ClassifyIn) for name in ("first", "second")}
        self.cards |= {name: card(name, "actions", Matrices, media_types=FORMS[:2]) for name in ("bmn", "oat")}
        self.cards["pane"] = card("pane", "restore", RestoreIn, notes=["Takes reflections away."])
        for name in ("detect", "restore", "actions"):
            self.app.add_api_route(f"/v1/{name}", getattr(self, name), methods=["POST"], response_model=None)

    async def example(self, name: str) -> dict[str, object]:
        if self.cards[name]["task"] == "actions":
            return {"model": None, "features": [[0.5, 1.0]], "semantics": None, "fps": None, "duration": 8}
        picture = plain(BEFORE) if name == "pane" else plain((90, 90, 90), 240, 160)
        return {"model": None, "image": base64.b64encode(picture).decode()}

    async def classify(self, request: Request) -> Response:
        asked = await self.note_form(request)
        names = ["boot", "dress", "hat", "shoe"]
        sure, turn = (0.8, 0) if asked["model"] == "first" else (0.6, 3)
        sides = 2 if "tile" in asked else 1
        results = []
        for place in range(sides * sides):
            order = names[(place + turn) % 4 :] + names[: (place + turn) % 4]
            row, column = divmod(place, sides)
            top = [
                Candidate(label=name, class_id=names.index(name), probability=sure / 2**at)
                for at, name in enumerate(order[:3])
            ]
            box = (column * 160, row * 120, column * 160 + 320 // sides, row * 120 + 240 // sides)
            results.append(Classified(**top[0].model_dump(), box=box, top=top))
        answer = ClassifyOut(
            model=asked["model"], version="1", engine="onnx", width=320, height=240, rows=sides, columns=sides,
            results=results, counts={one.label: 1 for one in results}, times=Times(),
        )  # fmt: skip
        return JSONResponse(answer.model_dump(mode="json"))

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

    async def restore(self, request: Request) -> JSONResponse:
        asked = await self.note_form(request)
        answer = RestoreOut(
            model="pane", version="1", engine="onnx", variant="paper", width=320, height=240, format="png",
            bit_depth=8, estimate=Estimate(seconds=2.5, memory_mib=100, tiles=6, tile_core=64, tile_context=128),
            restored=None if asked.get("dry_run") == "true" else plain(AFTER), mean_change=0.25,
            times=RestoreTimes(),
        )  # fmt: skip
        return JSONResponse(answer.model_dump(mode="json"))

    async def actions(self, request: Request) -> Response:
        asked = await request.json()
        self.seen.append({"accept": request.headers["accept"], **asked})
        Matrices.model_validate(asked)
        if request.headers["accept"] == "image/png":
            return Response(photograph(64, 48), media_type="image/jpeg")
        top = [{"label": "run", "score": 0.5}, {"label": "jump", "score": 0.25}]
        return JSONResponse({"model": asked["model"], "proposals": [{"start": 1.0, "end": 2.5, "top": top}]})


SERVICE = Seeing


@pytest.fixture
def classified(page):
    open_with_picture(page, "classify?model=first")
    return page


def test_a_picture_has_a_class_with_its_runners_up(classified, see):
    assert (figure(classified, "class"), figure(classified, "certainty")) == ("boot", "80.0 %")
    rows = classified.locator("[data-part=candidates] > div").all_inner_texts()
    assert [row.split() for row in rows] == [["boot", "80.0", "%"], ["dress", "40.0", "%"], ["hat", "20.0", "%"]]
    check_page(classified)


def test_patches_are_findings_with_their_place(classified, see):
    classified.get_by_label("Tile", exact=True).fill("120")
    classified.get_by_role("button", name="Classify", exact=True).click()
    see(classified.locator("[data-part=certainty]")).to_have_text("1 of 4 patches")
    findings = classified.get_by_role("list", name="Findings").get_by_role("listitem")
    see(findings.nth(3)).to_contain_text("shoe 0.80, row 2, column 2")
    findings.nth(3).hover()
    see(classified.locator("[data-part=candidates] > div").first).to_contain_text("shoe")
    lines = kept(classified, "Findings as CSV", "a.findings.csv").decode().splitlines()
    assert lines[4].startswith("a.jpg,shoe,0.8,160,120,320,240,boot 0.400; dress 0.200")


def test_two_models_are_compared_and_a_run_opens_again(classified, see):
    classified.get_by_role("button", name="Compare models").click()
    part = classified.get_by_role("region", name="Models side by side")
    part.get_by_role("button", name="Compare").click()
    see(part.locator("tbody tr")).to_have_text("1boot 0.80shoe 0.60")
    see(part.locator("[data-part=agreement]")).to_have_text("The 2 models name the same class in 0 of 1 finding.")
    classified.reload()
    see(classified.locator("[data-part=class]")).to_have_text("boot")


@pytest.fixture
def detected(page):
    run_example(page, "detect?model=road")
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


def test_another_request_for_the_shown_picture_drops_none_of_those_that_wait(page, see):
    held = []
    page.goto("/console/detect?model=road")
    page.route("**/v1/detect", lambda route: held.append(route) or (len(held) == 1 and route.continue_()))
    choose(page, *({**PICTURE, "name": f"{name}.jpg"} for name in "abc"))
    frames = page.get_by_role("listbox", name="Images").get_by_role("option")
    see(frames.nth(1)).to_have_attribute("aria-label", "b.jpg, runs")
    page.unroute("**/v1/detect")
    page.locator("#live-iou").fill("0.6")
    for name, frame in zip("abc", range(3), strict=True):
        see(frames.nth(frame)).to_have_attribute("aria-label", f"{name}.jpg, done")


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
    assert tasks.get_by_role("link").all_inner_texts() == ["Restore", "Detect", "Classify", "Actions"]
    tasks.get_by_role("link", name="Classify").click()
    see(detected.get_by_role("heading", name="Classify")).to_be_visible()
    see(tasks.get_by_role("link", name="Classify")).to_have_attribute("aria-current", "page")


def colour(page, share: float) -> list[int]:
    script = """(canvas, share) => {
        const copy = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
        copy.drawImage(canvas, Math.round(share * (canvas.width - 1)), 100, 1, 1, 0, 0, 1, 1);
        return [...copy.getImageData(0, 0, 1, 1).data];
    }"""
    return page.locator("canvas").evaluate(script, share)[:3]


def test_a_picture_is_restored_compared_under_a_slider_and_kept(page, stage, see):
    run_example(page, "restore")
    told = [figure(page, name) for name in ("size", "variant", "changed", "tiles")]
    assert told == ["320 × 240", "paper", "25.0 %", "6"]
    assert (colour(page, 0.2), colour(page, 0.8)) == ([*BEFORE], [*AFTER])
    for slider, share, shown in (("0.1", 0.2, AFTER), ("0.9", 0.8, BEFORE), ("0", 0, AFTER)):
        page.locator("#before-after").fill(slider)
        assert colour(page, share) == [*shown], slider
    assert kept(page, "Restored picture", "example.restored.png") == plain(AFTER)
    asked = stage.stub.seen[-1]
    assert asked["model"] == "pane"
    assert not asked.keys() & {"include", "picture"}, "what the page decides"
    see(page.locator("[data-part=fault]")).to_be_hidden()


def test_the_example_runs_on_the_model_that_was_chosen_and_its_answer_is_drawn(page, stage, see):
    page.goto("/console/run/actions?model=oat")
    page.get_by_role("button", name="Use the example").click()
    page.get_by_role("button", name="Run", exact=True).click()
    see(page.locator("fovea-result tbody tr")).to_have_count(1)
    see(page.get_by_role("img", name="the answer as a picture")).to_be_visible()
    see(page.locator("fovea-result td").last).to_have_text("run 0.5000 · jump 0.2500")
    assert [each["accept"] for each in stage.stub.seen[-2:]] == ["*/*", "image/png"]
    sent = stage.stub.seen[-1]
    assert (sent["model"], sent["features"], sent["duration"]) == ("oat", [[0.5, 1.0]], 8)
    assert "fps" not in sent


def test_a_file_of_numbers_is_sent_as_bytes(page, stage, see):
    page.goto("/console/run/actions")
    page.locator("#option-features").set_input_files({"name": "a.npy", "mimeType": "", "buffer": MATRIX})
    page.get_by_role("button", name="Run", exact=True).click()
    see(page.locator("fovea-result tbody tr")).to_have_count(1)
    assert base64.b64decode(stage.stub.seen[-1]["features"]) == MATRIX
