"""A task without a page of its own that takes matrices and can draw its answer, in a real browser."""

import base64

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from fovea_actions.schema import ActionsIn
from services.gateway.tests.browsing import MARKS
from services.gateway.tests.stub_service import Stub, card, photograph

pytestmark = MARKS

MATRIX = b"a file of numbers"
FORMS = ["application/json", "image/png"]


class Acting(Stub):
    """Finds one action in every video, and draws a picture of that."""

    def __init__(self) -> None:
        super().__init__()
        self.cards = {name: card(name, "actions", ActionsIn, media_types=FORMS) for name in ("first", "second")}
        self.app.add_api_route("/v1/actions", self.actions, methods=["POST"], response_model=None)

    async def example(self, name: str) -> dict[str, object]:
        return {"model": None, "features": [[0.5, 1.0]], "semantics": None, "fps": None, "duration": 8}

    async def actions(self, request: Request) -> Response:
        asked = await request.json()
        self.seen.append({"accept": request.headers["accept"], **asked})
        ActionsIn.model_validate(asked)
        if request.headers["accept"] == "image/png":
            return Response(photograph(64, 48), media_type="image/jpeg")
        top = [{"label": "run", "score": 0.5}, {"label": "jump", "score": 0.25}]
        return JSONResponse({"model": asked["model"], "proposals": [{"start": 1.0, "end": 2.5, "top": top}]})


SERVICE = Acting


def test_the_example_runs_on_the_model_that_was_chosen_and_its_answer_is_drawn(page, stage, see):
    page.goto("/console/run/actions?model=second")
    page.get_by_role("button", name="Use the example").click()
    page.get_by_role("button", name="Run", exact=True).click()
    see(page.locator("fovea-result tbody tr")).to_have_count(1)
    see(page.get_by_role("img", name="the answer as a picture")).to_be_visible()
    see(page.locator("fovea-result td").last).to_have_text("run 0.5000 · jump 0.2500")
    assert [each["accept"] for each in stage.stub.seen[-2:]] == ["*/*", "image/png"]
    sent = stage.stub.seen[-1]
    assert (sent["model"], sent["features"], sent["duration"]) == ("second", [[0.5, 1.0]], 8)
    assert "fps" not in sent


def test_a_file_of_numbers_is_sent_as_bytes(page, stage, see):
    page.goto("/console/run/actions")
    page.locator("#option-features").set_input_files({"name": "a.npy", "mimeType": "", "buffer": MATRIX})
    page.get_by_role("button", name="Run", exact=True).click()
    see(page.locator("fovea-result tbody tr")).to_have_count(1)
    assert base64.b64decode(stage.stub.seen[-1]["features"]) == MATRIX
