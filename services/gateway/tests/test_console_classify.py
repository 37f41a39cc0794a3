"""The classify page in a real browser: classes of pictures and patches, many at once, models side by side."""

import pytest
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from fovea.api.classes import Candidate, Classified, ClassifyIn, ClassifyOut
from fovea.api.timings import Times
from services.gateway.tests.browsing import MARKS, check_page, figure, kept, open_with_picture
from services.gateway.tests.stub_service import Stub, card

pytestmark = MARKS


class Classifying(Stub):
    """Classes by the place of a patch; the model `second` is less sure, and takes boots for shoes."""

    def __init__(self) -> None:
        super().__init__()
        self.cards = {name: card(name, "classify", ClassifyIn) for name in ("first", "second")}

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


SERVICE = Classifying


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
