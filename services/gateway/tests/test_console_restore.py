"""The restore page in a real browser: a picture in, before and after under one slider, the result to keep."""

import base64
import io

from PIL import Image
from starlette.requests import Request
from starlette.responses import JSONResponse

from fovea.api.restore import Estimate, RestoreIn, RestoreOut, RestoreTimes
from services.gateway.tests.browsing import MARKS, figure, kept
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
        asked = await self.note_form(request)
        answer = RestoreOut(
            model="pane", version="1", engine="onnx", variant="paper", width=320, height=240, format="png",
            bit_depth=8, estimate=Estimate(seconds=2.5, memory_mib=100, tiles=6, tile_core=64, tile_context=128),
            restored=None if asked.get("dry_run") == "true" else picture(AFTER), mean_change=0.25,
            times=RestoreTimes(),
        )  # fmt: skip
        return JSONResponse(answer.model_dump(mode="json"))


SERVICE = Restoring


def colour(page, share: float) -> list[int]:
    script = """(canvas, share) => {
        const copy = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
        copy.drawImage(canvas, Math.round(share * (canvas.width - 1)), 100, 1, 1, 0, 0, 1, 1);
        return [...copy.getImageData(0, 0, 1, 1).data];
    }"""
    return page.locator("canvas").evaluate(script, share)[:3]


def test_a_picture_is_restored_compared_under_a_slider_and_kept(page, stage, see):
    page.goto("/console/restore")
    page.get_by_role("button", name="Use the model’s example").click()
    page.locator("[data-part=result]").wait_for()
    told = [figure(page, name) for name in ("size", "variant", "changed", "tiles")]
    assert told == ["320 × 240", "paper", "25.0 %", "6"]
    assert (colour(page, 0.2), colour(page, 0.8)) == ([*BEFORE], [*AFTER])
    for slider, share, shown in (("0.1", 0.2, AFTER), ("0.9", 0.8, BEFORE), ("0", 0, AFTER)):
        page.locator("#before-after").fill(slider)
        assert colour(page, share) == [*shown], slider
    assert kept(page, "Restored picture", "example.restored.png") == picture(AFTER)
    asked = stage.stub.seen[-1]
    assert asked["model"] == "pane"
    assert not asked.keys() & {"include", "picture"}, "what the page decides"
    see(page.locator("[data-part=fault]")).to_be_hidden()
