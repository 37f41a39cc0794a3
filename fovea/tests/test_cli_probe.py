"""Verbs that run a study as a job (`probe`, `heads`) or send many pictures (`restore`, `detect`, `classify`)."""

import asyncio
import base64
import json
from types import SimpleNamespace

import pytest

from fovea.api.model import ModelEntry
from fovea.api.restore import ImageSimilarity
from fovea.cli.batch_images import run_concurrently, write_files
from fovea.cli.commands import probe, restore
from fovea.cli.common_options import Connection
from fovea.cli.output import Screen
from fovea.errors import DeadlineExceeded, NotFound, NotReady, TooLarge
from services.gateway.tests.stub_service import AFTER, Seeing, plain, restored
from tests.command import command_runner

EVIDENCE = {"schema": "retrieval-report/1", "scores": [[0.5, 0.0]]}
PLAN = {"schema": "head-plan/1", "roles": [[1, 0]]}
HEADS = {
    "title": "Retrieval heads", "warnings": ["Few samples."], "grids": [],
    "scalars": {
        "kept": {"value": 4.0, "unit": "", "note": "Samples."}, "nll": {"value": None, "unit": "nats", "note": ""},
    },
    "tables": [{"name": "top", "columns": ["head", "score"], "rows": [["1-0", 0.76], ["2-1", 0.5]]}],
    "artefacts": [
        {"name": "retrieval-report.json", "content": json.dumps(EVIDENCE)},
        {"name": "head-plan.json", "content": json.dumps(PLAN)},
    ],
}  # fmt: skip
GRID = {
    "title": "Needle grid", "warnings": [], "scalars": {"recall": {"value": 0.5, "unit": "", "note": ""}},
    "tables": [], "artefacts": [],
    "grids": [{"rows": {"ticks": ["0", "100"]}, "columns": {"ticks": ["350"]}, "values": [[1.0], [None]]}],
}  # fmt: skip


class FakeClient:
    """A gateway that finishes every job at once."""

    def __init__(self, reports):
        self.reports, self.asked = reports, []
        self.jobs = self

    def __enter__(self):
        return self

    def __exit__(self, *_):
        """Nothing to close."""

    def models(self, task):
        entry = {"object": "model", "created": 1, "owned_by": "fovea", "task": task, "service": "probes", "ready": True}
        return [ModelEntry(id=name, summary=f"Studies {name}.", **entry) for name in self.reports]

    def run(self, task, request, *, accept):
        return f"{request['model']} as {accept}".encode()

    def send(self, call):
        if "prefer" in call.headers:
            self.asked.append((call.path.rpartition("/")[2], call.json))
            return SimpleNamespace(id=call.json["model"])
        if call.path == "/v1/longctx/methods":
            return [SimpleNamespace(name="duo")]
        return f"{call.path} as {call.params['format']}".encode()

    def model(self, name):
        return SimpleNamespace(request_schema={"properties": {"samples": {"type": "integer"}}})

    def events(self, job_id):
        yield SimpleNamespace(id=job_id, progress=1.0, note="2 of 2 cells", status="succeeded")

    def result(self, job_id):
        return SimpleNamespace(json=lambda: self.reports[job_id])


@pytest.fixture
def study(monkeypatch, capfdbinary):
    client = FakeClient({"retrieval-heads": HEADS, "head-plans": HEADS, "needle-grid": GRID})
    monkeypatch.setattr(Connection, "open", lambda _: client)
    monkeypatch.setenv("NO_COLOR", "1")
    run = command_runner(monkeypatch, capfdbinary)
    return lambda *words, verb="probe": (*run(verb, *words), client)


def test_experiments_are_listed_and_a_study_told_with_its_warnings_or_as_json_lines(study):
    code, out, _, _ = study()
    assert (code, out.splitlines()[0]) == (0, "retrieval-heads\tStudies retrieval-heads.")
    code, _, err, client = study("retrieval-head")
    assert (code, "Did you mean retrieval-heads?" in err, client.asked) == (4, True, [])
    assert "Experiments: retrieval-heads, head-plans, needle-grid." in study("yolo9tr")[2]
    code, out, err, client = study("retrieval-heads", "-O", "samples=4", "--lm", "tiny")
    assert (code, client.asked) == (0, [("probe", {"model": "retrieval-heads", "lm": "tiny", "samples": 4})])
    assert ("1-0" in out, "Few samples." in err) == (True, True)
    assert json.loads(study("retrieval-heads", "--json")[1])["title"] == "Retrieval heads"
    for words in (["-O", "samples"], ["--then", "duo", "--lengths", "many"]):
        client.asked.clear()
        code, _, err, _ = study("retrieval-heads", *words)
        assert (code, bool(err), client.asked) == (2, True, [])
    assert ("Methods: duo." in study("retrieval-heads", "--then", "dou")[2], client.asked) == (True, [])


def test_a_long_table_says_how_much_is_shown_and_a_pipe_gets_all_with_all_digits(study, monkeypatch):
    rows = [[f"{n}-0", n / 100] for n in range(100)]
    monkeypatch.setitem(HEADS, "tables", [{"name": "top", "columns": ["head", "score"], "rows": rows}])
    _, out, err, _ = study("retrieval-heads", "--format", "table")
    assert ("59-0" in out, "60-0" in out, "60 of 100 rows" in err) == (True, False, True)
    assert len(study("retrieval-heads")[1].splitlines()) == 104  # a title, two numbers, a head and the rows
    monkeypatch.setitem(HEADS, "scalars", {"edges": {"value": 32491.0, "unit": "", "note": ""}})
    monkeypatch.setitem(HEADS, "tables", [{"name": "top", "columns": ["score"], "rows": [[0.123456789], [2048.0]]}])
    for form, told in (("table", ["32491", "0.123", "2048"]), ("csv", ["0.123456789", "2048"])):
        words = study("retrieval-heads", "--format", form)[1].replace(",", " ").split()
        assert [word for word in words if word[0].isdigit()] == told


GONE = NotFound("There is no job.", hint="Jobs are kept for a day.")
LOST = NotReady("The connection broke.", hint="Try again.")


@pytest.mark.parametrize(("error", "wanted"), [(LOST, 6), (KeyboardInterrupt(), 130), (GONE, 4)])
def test_a_lost_connection_names_the_job_and_how_to_go_on_unless_it_is_gone(study, monkeypatch, error, wanted):
    def events(self, job_id):
        yield SimpleNamespace(progress=0.5, note="1 of 2 cells", status="running")
        raise error

    monkeypatch.setattr(FakeClient, "events", events)
    code, _, err, _ = study("retrieval-heads")
    is_gone = error is GONE
    assert (code, "Jobs are kept for a day." in err) == (wanted, is_gone)
    for words in ("goes on. Follow it: fovea jobs watch retrieval-heads.", "fovea jobs result retrieval-heads -o FILE"):
        assert (words in err) is not is_gone


def test_loop_hands_the_plan_to_the_method_and_shows_both_grids(study, tmp_path, monkeypatch):
    code, out, _, client = study("retrieval-heads", "--then", "duo", "--lengths", "350", "-o", str(tmp_path / "out"))
    assert code == 0
    methods = [request.get("longctx") for _, request in client.asked]
    assert methods == [None, {"method": "dense"}, {"method": "duo", "plan": PLAN}]
    assert "needle grid with duo" in out
    assert json.loads((tmp_path / "out" / "head-plan.json").read_text()) == PLAN
    kinds = ("json", "html", "svg")
    assert {file.name for file in (tmp_path / "out").iterdir()} == {
        "head-plan.json", "retrieval-report.json",
        *(f"{name}.{kind}" for name in ("retrieval-heads", "needle-dense", "needle-duo") for kind in kinds),
    }  # fmt: skip
    assert (tmp_path / "out" / "needle-duo.svg").read_text() == "needle-grid as image/svg+xml"
    monkeypatch.setitem(HEADS, "manifest", {"report": "abc"})  # a stored report is fetched as page and figure
    study("retrieval-heads", "-o", tmp_path)
    assert (tmp_path / "retrieval-heads.html").read_text() == "/v1/probe/reports/abc as html"


def test_a_study_without_a_plan_or_without_heads_ends_in_words(study, monkeypatch):
    code, _, err, client = study("needle-grid", "--then", "duo")
    assert (code, "no head plan" in err, len(client.asked)) == (2, True, 1)
    monkeypatch.setitem(HEADS, "artefacts", [])
    code, _, err, _ = study("calibrate", "mine", verb="heads")
    assert (code, "no retrieval heads" in err) == (2, True)


def test_a_plan_by_name_is_made_of_what_retrieval_finds_or_of_another_kind_and_told_once_it_is(
    study, tmp_path, monkeypatch
):
    words = ("calibrate", "mine", "--lm", "tiny", "-O", "samples=4", "--share", "0.25", "-o", str(tmp_path))
    code, _, err, client = study(*words, verb="heads")
    assert code == 0
    assert [request for _, request in client.asked] == [
        {"model": "retrieval-heads", "lm": "tiny", "samples": 4},
        {"model": "head-plans", "kind": "retrieval", "name": "mine", "lm": "tiny", "share": 0.25, "report": EVIDENCE},
    ]
    assert ('"plan": "mine"' in err, (tmp_path / "head-plan.json").exists()) == (True, True)
    client.asked.clear()
    assert study("calibrate", "mine", "--kind", "duo", "-O", "samples=30", verb="heads")[0] == 0
    asked = {"model": "head-plans", "kind": "duo", "name": "mine", "samples": 30}
    assert [request for _, request in client.asked] == [asked]
    monkeypatch.setitem(HEADS, "artefacts", [])
    code, _, err, _ = study("calibrate", "mine", "--kind", "act", verb="heads")
    assert (code, '"plan"' in err) == (0, False)


SERVICE = Seeing
BOXES = {"a.boxes.jpg": "image/jpeg", "a.csv": "text/csv", "a.crops.zip": "application/zip"}


@pytest.fixture
def here(folder, monkeypatch):
    """The current folder, with a picture `a.jpg`."""
    monkeypatch.chdir(folder)
    return folder


def test_a_picture_is_sent_with_the_options_a_failure_counted_and_what_takes_too_long_is_a_job(fovea, stage, here):
    stage.stub.fails = [TooLarge("The picture is too large.")]
    _, _, err = fovea("restore", "a.jpg", "-o", "out")
    assert ("a.jpg: The picture is too large." in err, "1 of 1 failed." in err) == (True, True)
    assert not (here / "out").exists()
    stage.stub.fails = [DeadlineExceeded("too long")]
    code, _, err = fovea("restore", "a.jpg", "-o", "out")
    assert (code, "Continues as job job-" in err, (here / "out/a.restored.png").exists()) == (0, True, True)
    told = fovea("restore", "a.jpg", "--variant", "paper", "-o", "out")[:2]
    assert told == (0, "a.jpg: 320×240, paper, changed by 25.0 % of white\n")
    assert (stage.stub.seen[-1], (here / "out/a.restored.png").read_bytes()) == ({"variant": "paper"}, plain(AFTER))
    assert json.loads((here / "out/a.json").read_text())["estimate"]["tiles"] == 6
    told = fovea("restore", "a.jpg", "--result-format", "png", "--format", "{file} {variant}")
    assert (told, stage.stub.seen[-1]) == ((0, "a.jpg paper\n", ""), {"format": "png"})


def test_a_reference_goes_along_and_layers_and_binary_artefacts_are_written_with_cost_and_likeness(here, tmp_path):
    sent = restore._RestoreBatch(Screen(), {"model": None}, reference=here / "a.jpg").build_call(b"x")
    assert set(sent.files) == {"image", "reference"}
    files = write_files(here, "a", restore.list_files(restored(reflection=b"r", comparison=b"c")))
    written = {file.rpartition("/")[2] for file in files}
    assert written == {"a.restored.png", "a.reflection.png", "a.comparison.jpg", "a.json"}
    assert restore.summarise(restored(restored=None)) == "320×240 in 6 tiles would take about 2.5 s and 1,234 MiB"
    before, after = ImageSimilarity(psnr=20, ssim=0.8), ImageSimilarity(psnr=None, ssim=1)
    assert restore.summarise(restored(input_likeness=before, likeness=after)).endswith("20.0 dB → equal")
    artefact = {"name": "edges.npz", "content": base64.b64encode(b"PK\x00\xff").decode(), "encoding": "base64"}
    probe.save_report({**HEADS, "artefacts": [artefact]}, "edges", tmp_path, Screen(as_json=False))
    assert (tmp_path / "edges.npz").read_bytes() == b"PK\x00\xff"


@pytest.mark.parametrize(("verb", "options", "told", "sent"), [
    ("classify", [], "boot 80.0%, dress 40.0%, hat 20.0%", {"model": "first"}),
    ("classify", ["--tile", "96"], "1 × boot, 1 × dress, 1 × hat, 1 × shoe", {"tile": "96", "model": "first"}),
    ("classify", ["--model", "second"], "shoe 60.0%, boot 30.0%, dress 15.0%", {"model": "second"}),
    ("detect", ["--confidence", "0.4"], "2 × crack", {"confidence": "0.4", "model": "road"}),
])  # fmt: skip
def test_a_picture_is_told_in_a_line_and_options_reach_the_model(fovea, stage, here, verb, options, told, sent):
    assert fovea(verb, "a.jpg", *options)[:2] == (0, f"a.jpg: {told}\n")
    assert stage.stub.seen[-1] == sent


@pytest.mark.parametrize(("verb", "also", "files"), [
    ("classify", [], {"a.classes.jpg": "image/jpeg"}), ("detect", ["csv", "crops"], BOXES),
])  # fmt: skip
def test_answer_and_further_forms_are_written_where_asked(fovea, here, verb, also, files):
    _, out, _ = fovea(verb, "a.jpg", "-o", "out", "--json", *(word for form in also for word in ("--also", form)))
    answer = json.loads((here / "out/a.json").read_text())
    assert (answer.get("results") or answer["detections"])[0]["label"] in {"boot", "crack"}
    written = {path.name: path.read_text() for path in (here / "out").iterdir() if path.suffix != ".json"}
    assert (written, json.loads(out)["file"]) == ({name: f"a file of {kind}" for name, kind in files.items()}, "a.jpg")


def test_detections_of_many_pictures_some_of_one_name_are_one_coco_file(fovea, here):
    for name in ("one/a.jpg", "two/a.jpg", "two/b.jpg"):
        (here / name).parent.mkdir(exist_ok=True)
        (here / name).write_bytes((here / "a.jpg").read_bytes())
    fovea("detect", "*/*.jpg", "-o", "out", "--also", "coco", "--confidence", "0.4")
    held = json.loads((here / "out/coco.json").read_text())
    assert [image["file_name"] for image in held["images"]] == ["b.jpg", "one/a.jpg", "two/a.jpg"]
    assert held["annotations"][0] == {
        "id": 1, "image_id": 1, "category_id": 1, "bbox": [20, 20, 100, 40], "area": 4000, "iscrowd": 0,
        "segmentation": [], "score": 0.9,
    }  # fmt: skip
    assert [category["name"] for category in held["categories"]] == ["crack"]
    assert [row["image_id"] for row in held["annotations"]] == [1, 1, 2, 2, 3, 3]


def test_yolo_files_come_with_the_names_of_all_classes_and_a_form_that_there_is_not_or_no_folder_is_refused(
    fovea, stage, here
):
    fovea("detect", "a.jpg", "-o", "out", "--also", "yolo")
    assert (here / "out/a.txt").read_text().startswith("a file of text/plain")
    assert (here / "out/classes.txt").read_text() == "crack\nhole\n"
    asked = len(stage.stub.seen)
    for words in (["--also", "pdf", "-o", "out"], ["--also", "csv"]):
        assert (fovea("detect", "a.jpg", *words)[0], len(stage.stub.seen)) == (2, asked)


def test_deeds_never_run_more_than_so_many_at_a_time():
    running, most = [], []

    async def deed():
        running.append(0)
        most.append(len(running))
        await asyncio.sleep(0.01)
        running.pop()

    asyncio.run(run_concurrently([deed] * 9, 3, Screen(as_json=True), "doing"))
    assert (running, max(most), len(most)) == ([], 3, 9)
