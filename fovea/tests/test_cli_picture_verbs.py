"""`fovea classify` and `fovea detect`: what they ask, and what they print and write."""

import asyncio
import contextlib
import json
from types import SimpleNamespace

import pytest

from fovea.api.boxes import DetectIn
from fovea.api.classes import ClassifyIn
from fovea.cli.batch_images import run_concurrently
from fovea.cli.commands import classify, detect
from fovea.cli.common_options import Connection, GatewayOptions
from fovea.cli.output import Screen
from fovea.errors import InvalidOption
from services.gateway.tests.stub_service import photograph

FACTS = {"model": "m", "version": "1", "engine": "onnx", "width": 8, "height": 8, "times": {}}
FOUND = {"box": (1, 2, 5, 6), "score": 0.9, "label": "crack", "class_id": 0, "area": 16, "radius": 2}


def classified(tile=None):
    labels = ["crack", "crack", "none", "none"] if tile else ["crack"]
    facts = {"class_id": 0, "probability": 0.9}
    results = [
        {**facts, "label": label, "box": (0, 0, 8, 8), "top": [
            {**facts, "label": label}, {"label": "other", "class_id": 1, "probability": 0.1},
        ]}
        for label in labels
    ]  # fmt: skip
    counts = {label: labels.count(label) for label in dict.fromkeys(labels)}
    return {**FACTS, "rows": len(labels), "columns": 1, "results": results, "counts": counts}


class AnsweringGateway:
    """Stands in for a `Connection` and for its client; `asked` is what it was asked."""

    def __init__(self) -> None:
        self.asked = []

    @contextlib.asynccontextmanager
    async def open_async(self):
        """Itself."""
        yield self

    async def default_model(self, task):
        """A model of that task."""
        return f"default-{task}"

    async def model(self, name):
        """Its card."""
        request = ClassifyIn if "classify" in name else DetectIn
        return SimpleNamespace(request_schema=request.model_json_schema(), name=name)

    async def run(self, task, options, *, pictures, accept=None):
        """An answer, or the name of the form that was asked for."""
        self.asked.append((task, dict(options), accept))
        if accept:
            return accept.encode()
        if task == "classify":
            return classified(options.get("tile"))
        return {**FACTS, "detections": [FOUND, FOUND], "counts": {"crack": 2}}


@pytest.fixture
def gateway(monkeypatch):
    made = AnsweringGateway()
    monkeypatch.setattr(Connection, "open_async", lambda _: made.open_async())
    return made


def call(verb, picture, options=None, **more):
    gateway = GatewayOptions(json_lines=more.pop("json_lines", False))
    {"classify": classify._classify, "detect": detect._detect}[verb](
        sources=[str(picture)], options=options or {}, gateway=gateway, **more
    )


@pytest.mark.parametrize(
    ("verb", "options", "told"),
    [
        ("classify", {}, "crack 90.0%, other 10.0%"),  # a whole picture with its candidates
        ("classify", {"tile": 96}, "2 × crack, 2 × none"),  # patches are counted
        ("detect", {"confidence": 0.4}, "2 × crack"),
    ],
)
def test_a_picture_is_told_in_a_line_and_options_reach_the_model(gateway, folder, capsys, verb, options, told):
    call(verb, folder / "a.jpg", options)
    assert capsys.readouterr().out == f"{folder / 'a.jpg'}: {told}\n"
    call(verb, folder / "a.jpg", options, model=f"my-{verb}")
    assert gateway.asked == [(verb, {**options, "model": model}, None) for model in (f"default-{verb}", f"my-{verb}")]


@pytest.mark.parametrize(
    ("verb", "more", "files"),
    [
        ("classify", {}, {"a.classes.jpg": b"image/jpeg"}),
        (
            "detect",
            {"also": ["csv", "coco", "crops"]},
            {"a.boxes.jpg": b"image/jpeg", "a.csv": b"text/csv", "a.crops.zip": b"application/zip"},
        ),
    ],
)
def test_answer_and_further_forms_are_written_where_asked(gateway, folder, capsys, verb, more, files):
    call(verb, folder / "a.jpg", output=folder / "out", json_lines=True, **more)
    answer = json.loads((folder / "out" / "a.json").read_text())
    assert (answer.get("results") or answer["detections"])[0]["label"] == "crack"
    assert {path.name: path.read_bytes() for path in (folder / "out").iterdir() if path.suffix != ".json"} == files
    assert json.loads(capsys.readouterr().out)["file"].endswith("a.jpg")


def test_detections_of_many_pictures_are_one_coco_file(gateway, folder):
    (folder / "b.jpg").write_bytes(photograph())
    call("detect", folder, output=folder / "out", also=["coco"])
    held = json.loads((folder / "out" / "coco.json").read_text())
    assert [image["file_name"] for image in held["images"]] == ["a.jpg", "b.jpg"]
    assert held["annotations"][0] == {
        "id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 2, 4, 4], "area": 16, "iscrowd": 0, "segmentation": [],
        "score": 0.9,
    }  # fmt: skip
    assert [category["name"] for category in held["categories"]] == ["crack"]
    assert [row["image_id"] for row in held["annotations"]] == [1, 1, 2, 2]


@pytest.mark.parametrize(("also", "output"), [(["pdf"], "out"), (["csv"], None)])
def test_a_form_that_there_is_not_or_no_folder_is_refused(gateway, folder, also, output):
    with pytest.raises(InvalidOption) as refused:
        call("detect", folder / "a.jpg", also=also, output=output and folder / output)
    assert (refused.value.field, gateway.asked) == ("also", [])


def test_deeds_never_run_more_than_so_many_at_a_time():
    running, most = 0, 0

    async def deed():
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.01)
        running -= 1

    asyncio.run(run_concurrently([deed] * 9, 3, Screen(as_json=True), "doing"))
    assert (running, most) == (0, 3)
