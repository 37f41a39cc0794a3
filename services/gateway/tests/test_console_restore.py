"""The restore page in a real browser: a picture in, before and after under one slider, the result to keep."""

import base64
import io

import pytest
from PIL import Image
from starlette.requests import Request
from starlette.responses import JSONResponse

from fovea.api.restore import Estimate, RestoreIn, RestoreOut, RestoreTimes
from services.gateway.tests.browsing import MARKS, figure, kept
from services.gateway.tests.stage import running
from services.gateway.tests.stub_service import Stub, card

pytestmark = MARKS

BEFORE, AFTER = (200, 40, 40), (40, 40, 200)


def picture(colour: tuple[int, int, int]) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (320, 240), colour).save(out, "PNG")
    return out.getvalue()


class Restoring(Stub):
    def __init__(self) -> None:
        super().__init__()
        self.cards = {"pane": card("pane", "restore", RestoreIn, notes=["Takes reflections away."])}
        self.app.add_api_route("/v1/restore", self.restore, methods=["POST"], response_model=None)

    async def example(self, name: str) -> dict[str, object]:
        return {"model": name, "image": base64.b64encode(picture(BEFORE)).decode()}

    async def restore(self, request: Request) -> JSONResponse:
        async with request.form() as form:
            asked = {name: value for name, value in form.items() if isinstance(value, str)}
        self.seen.append(asked)
        answer = RestoreOut(
            model="pane",
            version="1",
            engine="onnx",
            variant="paper",
            width=320,
            height=240,
            format="png",
            bit_depth=8,
            estimate=Estimate(seconds=2.5, memory_mib=100, tiles=6, tile_core=64, tile_context=128),
            restored=None if asked.get("dry_run") == "true" else picture(AFTER),
            mean_change=0.25,
            times=RestoreTimes(),
        )
        return JSONResponse(answer.model_dump(mode="json"))


@pytest.fixture(scope="module")
def stage(tmp_path_factory):
    with running(tmp_path_factory.mktemp("restoring"), Restoring()) as made:
        yield made


def restored(page):
    page.goto("/console/restore")
    page.get_by_role("button", name="Use the model’s example").click()
    page.locator("[data-part=result]").wait_for()


def colour(page, share: float) -> list[int]:
    script = """(canvas, share) => {
        const copy = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
        copy.drawImage(canvas, Math.round(share * (canvas.width - 1)), 100, 1, 1, 0, 0, 1, 1);
        return [...copy.getImageData(0, 0, 1, 1).data];
    }"""
    return page.locator("canvas").evaluate(script, share)[:3]


def test_the_slider_moves_the_border_between_before_and_after(page):
    restored(page)
    assert (colour(page, 0.2), colour(page, 0.8)) == ([*BEFORE], [*AFTER])
    page.locator("#before-after").fill("0.1")
    assert colour(page, 0.2) == [*AFTER]
    page.locator("#before-after").fill("0.9")
    assert colour(page, 0.8) == [*BEFORE]
    page.locator("#before-after").fill("0")
    assert colour(page, 0) == [*AFTER]


def test_the_answers_numbers_are_shown(page):
    restored(page)
    told = [figure(page, name) for name in ("size", "variant", "changed", "tiles")]
    assert told == ["320 × 240", "paper", "25.0 %", "6"]


def test_the_result_can_be_kept_as_it_came(page):
    restored(page)
    assert kept(page, "Restored picture", "example.restored.png") == picture(AFTER)


def test_the_request_names_the_model_and_leaves_out_what_the_page_decides(page, stage, see):
    restored(page)
    asked = stage.stub.seen[-1]
    assert asked["model"] == "pane"
    assert not asked.keys() & {"include", "picture"}
    see(page.locator("[data-part=fault]")).to_be_hidden()
