"""Verbs that send many pictures: restore, detect, classify, and deeds at once."""

import asyncio
import contextlib
import json
from datetime import UTC, datetime
from types import SimpleNamespace

import pytest

from fovea.api.boxes import DetectIn
from fovea.api.classes import ClassifyIn
from fovea.api.job import Job
from fovea.api.restore import Estimate, ImageSimilarity, RestoreOut, RestoreTimes
from fovea.cli.batch_images import run_concurrently, write_files
from fovea.cli.commands import classify, detect, restore
from fovea.cli.common_options import Connection, GatewayOptions
from fovea.cli.output import Screen
from fovea.errors import DeadlineExceeded, InvalidOption, TooLarge
from fovea.results import JobResult
from services.gateway.tests.stub_service import photograph


def answer(**changed: object) -> RestoreOut:
    facts = {
        "model": "rrformer", "version": "1", "engine": "onnx", "variant": "paper", "width": 640, "height": 480,
        "format": "jpeg", "bit_depth": 8, "times": RestoreTimes(), "restored": b"\xff\xd8\xff", "mean_change": 0.125,
        "estimate": Estimate(seconds=12.34, memory_mib=1234, tiles=6, tile_core=256, tile_context=128),
    }  # fmt: skip
    return RestoreOut(**{**facts, **changed})


class Source:
    """A picture of a test."""

    name, stem = "view.jpg", "view"

    async def read(self) -> bytes:
        return b"\xff\xd8\xff picture"


class Client:
    """Gives prepared answers, and remembers the requests."""

    def __init__(self, *answers: object) -> None:
        self.answers, self.sent = list(answers), []
        self.jobs = SimpleNamespace(wait=self._wait, result=self._result)

    async def send(self, call):
        self.sent.append(call)
        found = self.answers.pop(0)
        if isinstance(found, Exception):
            raise found
        return found

    async def _wait(self, job_id, *, on_change):
        on_change(job(progress=0.5, note="tile 3 of 6"))

    async def _result(self, job_id):
        return JobResult("application/json", answer().model_dump_json().encode())


def job(**changed: object) -> Job:
    return Job(
        **{
            "id": "j1", "service": "s", "path": "/v1/restore", "status": "running", "created": datetime.now(UTC),
            **changed,
        }
    )  # fmt: skip


@pytest.fixture
def work(tmp_path):
    return restore._RestoreBatch(Screen(as_json=False), {"variant": "paper", "model": None}, output=tmp_path / "out")


def test_a_picture_is_sent_with_the_options_and_written_with_its_facts(work, capfd):
    client = Client(answer())
    asyncio.run(work._process(client, Source()))
    (call,) = client.sent
    assert (call.path, call.form) == ("/v1/restore", {"variant": "paper"})
    assert call.files["image"][1] == b"\xff\xd8\xff picture"
    assert (work.output / "view.restored.jpg").read_bytes() == b"\xff\xd8\xff"
    assert json.loads((work.output / "view.json").read_text())["estimate"]["tiles"] == 6
    assert "640×480, paper, changed by 12.5 % of white" in capfd.readouterr().out


def test_a_reference_goes_along(work, tmp_path):
    (tmp_path / "clean.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    work.reference = tmp_path / "clean.png"
    assert set(work.build_call(b"x").files) == {"image", "reference"}


def test_one_failure_is_counted_and_what_takes_too_long_is_a_job(work, capfd):
    asyncio.run(work._process(Client(TooLarge("The picture is too large.")), Source()))
    assert work.failed == 1
    assert "view.jpg" in capfd.readouterr().err
    assert not work.output.exists()
    client = Client(DeadlineExceeded("too long"), job())
    asyncio.run(work._process(client, Source()))
    assert client.sent[1].headers["prefer"] == "respond-async"
    assert (work.output / "view.restored.jpg").exists()
    assert "job j1" in capfd.readouterr().err


def test_all_layers_that_came_are_written_with_cost_and_likeness(tmp_path):
    layers = restore.list_files(answer(format="png", reflection=b"r", comparison=b"c"))
    files = write_files(tmp_path, "a", layers)
    assert {file.rpartition("/")[2] for file in files} == {
        "a.restored.png", "a.reflection.png", "a.comparison.jpg", "a.json",
    }  # fmt: skip
    assert restore.summarise(answer(restored=None)) == "640×480 in 6 tiles would take about 12.3 s and 1,234 MiB"
    before, after = ImageSimilarity(psnr=20, ssim=0.8), ImageSimilarity(psnr=None, ssim=1)
    told = restore.summarise(answer(input_likeness=before, likeness=after))
    assert told.endswith("20.0 dB → equal")


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
        yield self

    async def default_model(self, task):
        return f"default-{task}"

    async def model(self, name):
        request = ClassifyIn if "classify" in name else DetectIn
        return SimpleNamespace(request_schema=request.model_json_schema(), name=name)

    async def run(self, task, options, *, pictures, accept=None):
        self.asked.append((task, dict(options), accept))
        if accept and "coco" in accept:
            return json.dumps({"categories": [{"id": 0, "name": "crack"}, {"id": 1, "name": "pothole"}]}).encode()
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
    run = {"classify": classify._classify, "detect": detect._detect}[verb]
    run(sources=[str(picture)], options=options or {}, gateway=gateway, **more)


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


def test_pictures_of_one_name_in_several_folders_are_all_in_the_coco_file(gateway, folder):
    for day in ("one", "two"):
        (folder / day).mkdir()
        (folder / day / "a.jpg").write_bytes(photograph())
    (folder / "two" / "b.jpg").write_bytes(photograph())
    call("detect", folder / "*" / "*.jpg", output=folder / "out", also=["coco"])
    held = json.loads((folder / "out" / "coco.json").read_text())
    shared = [str(folder / day / "a.jpg") for day in ("one", "two")]
    assert [image["file_name"] for image in held["images"]] == [*shared, "b.jpg"]
    assert [row["image_id"] for row in held["annotations"]] == [1, 1, 2, 2, 3, 3]


def test_yolo_files_come_with_the_names_of_all_classes_of_the_model(gateway, folder):
    call("detect", folder / "a.jpg", output=folder / "out", also=["yolo"])
    assert (folder / "out" / "a.txt").read_bytes() == b"text/plain"
    assert (folder / "out" / "classes.txt").read_text() == "crack\npothole\n"


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
