"""`fovea probe` and `fovea heads`: a study as a job, its artefacts, plans by name, and the loop to a needle grid."""

import base64
import json
from types import SimpleNamespace

import pytest

from fovea.api.model import ModelEntry
from fovea.cli.commands import probe
from fovea.cli.common_options import Connection
from fovea.cli.output import Screen
from fovea.errors import NotReady
from tests.command import command_runner

EVIDENCE = {"schema": "retrieval-report/1", "scores": [[0.5, 0.0]]}
PLAN = {"schema": "head-plan/1", "roles": [[1, 0]]}
HEADS = {
    "title": "Retrieval heads",
    "warnings": ["Few samples."],
    "scalars": {
        "kept": {"value": 4.0, "unit": "", "note": "Samples."},
        "nll": {"value": None, "unit": "nats", "note": ""},
    },
    "tables": [{"name": "top", "columns": ["head", "score"], "rows": [["1-0", 0.76], ["2-1", 0.5]]}],
    "grids": [],
    "artefacts": [
        {"name": "retrieval-report.json", "content": json.dumps(EVIDENCE)},
        {"name": "head-plan.json", "content": json.dumps(PLAN)},
    ],
}
GRID = {
    "title": "Needle grid", "warnings": [], "scalars": {"recall": {"value": 0.5, "unit": "", "note": ""}}, "tables": [],
    "artefacts": [],
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
        return f"{call.path} as {call.params['format']}".encode()

    def model(self, name):
        return SimpleNamespace(request_schema={"properties": {"samples": {"type": "integer"}}})

    def events(self, job_id):
        yield SimpleNamespace(progress=1.0, note="2 of 2 cells", status="succeeded")

    def result(self, job_id):
        return SimpleNamespace(json=lambda: self.reports[job_id])


@pytest.fixture
def fovea(monkeypatch, capfdbinary):
    client = FakeClient({"retrieval-heads": HEADS, "head-plans": HEADS, "needle-grid": GRID})
    monkeypatch.setattr(Connection, "open", lambda _: client)
    monkeypatch.setenv("NO_COLOR", "1")
    run = command_runner(monkeypatch, capfdbinary)
    return lambda *words, verb="probe": (*run(verb, *words), client)


def test_experiments_are_listed_and_a_study_told_with_its_warnings(fovea):
    code, out, _, _ = fovea()
    assert (code, out.splitlines()[0]) == (0, "retrieval-heads\tStudies retrieval-heads.")
    code, _, err, client = fovea("retrieval-head")
    assert (code, "Did you mean retrieval-heads?" in err, client.asked) == (4, True, [])
    assert "Experiments: retrieval-heads, head-plans, needle-grid." in fovea("yolo9tr")[2]
    code, out, err, client = fovea("retrieval-heads", "-O", "samples=4", "--lm", "tiny")
    assert (code, client.asked) == (0, [("probe", {"model": "retrieval-heads", "lm": "tiny", "samples": 4})])
    assert "1-0" in out
    assert "Few samples." in err


def test_a_long_table_says_how_much_is_shown_and_a_pipe_gets_all(fovea, monkeypatch):
    rows = [[f"{n}-0", n / 100] for n in range(100)]
    monkeypatch.setitem(HEADS, "tables", [{"name": "top", "columns": ["head", "score"], "rows": rows}])
    _, out, err, _ = fovea("retrieval-heads", "--format", "table")
    assert ("59-0" in out, "60-0" in out, "60 of 100 rows" in err) == (True, False, True)
    assert len(fovea("retrieval-heads")[1].splitlines()) == 104  # a title, two numbers, a head and the rows


def test_a_stored_report_is_fetched_as_page_and_figure(fovea, monkeypatch, tmp_path):
    monkeypatch.setitem(HEADS, "manifest", {"report": "abc"})
    fovea("retrieval-heads", "-o", tmp_path)
    assert (tmp_path / "retrieval-heads.html").read_text() == "/v1/probe/reports/abc as html"


@pytest.mark.parametrize("error", [NotReady("The connection broke.", hint="Try again."), KeyboardInterrupt()])
def test_a_lost_connection_names_the_job_and_how_to_go_on(fovea, monkeypatch, error):
    def events(self, job_id):
        yield SimpleNamespace(progress=0.5, note="1 of 2 cells", status="running")
        raise error

    monkeypatch.setattr(FakeClient, "events", events)
    code, _, err, _ = fovea("retrieval-heads")
    assert code == (130 if isinstance(error, KeyboardInterrupt) else 6)
    assert "The job retrieval-heads goes on. Follow it: fovea jobs watch retrieval-heads." in err
    assert "fovea jobs result retrieval-heads -o FILE" in err


def test_loop_hands_the_plan_to_the_method_and_shows_both_grids(fovea, tmp_path):
    code, out, _, client = fovea("retrieval-heads", "--then", "duo", "--lengths", "350", "-o", str(tmp_path / "out"))
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


def test_study_without_a_plan_ends_the_loop_in_words(fovea):
    code, _, err, client = fovea("needle-grid", "--then", "duo")
    assert code == 2
    assert "no head plan" in err
    assert len(client.asked) == 1


@pytest.mark.parametrize("words", [["-O", "samples"], ["--then", "duo", "--lengths", "many"]])
def test_bad_words_are_told(fovea, words):
    code, _, err, _ = fovea("retrieval-heads", *words)
    assert code == 2
    assert err


def test_programs_get_json_lines_and_other_kinds_take_the_options(fovea):
    code, _, _, client = fovea("calibrate", "mine", "--kind", "duo", "-O", "samples=30", verb="heads")
    assert code == 0
    asked = {"model": "head-plans", "kind": "duo", "name": "mine", "samples": 30}
    assert [request for _, request in client.asked] == [asked]
    _, out, _, _ = fovea("retrieval-heads", "--json")
    assert json.loads(out)["title"] == "Retrieval heads"


def test_a_plan_by_name_is_made_of_what_retrieval_finds(fovea, tmp_path):
    words = ("calibrate", "mine", "--lm", "tiny", "-O", "samples=4", "--share", "0.25", "-o", str(tmp_path))
    code, _, err, client = fovea(*words, verb="heads")
    assert code == 0
    assert [request for _, request in client.asked] == [
        {"model": "retrieval-heads", "lm": "tiny", "samples": 4},
        {"model": "head-plans", "kind": "retrieval", "name": "mine", "lm": "tiny", "share": 0.25, "report": EVIDENCE},
    ]
    assert '"plan": "mine"' in err
    assert (tmp_path / "head-plan.json").exists()


def test_calibration_that_finds_nothing_says_so(fovea, monkeypatch):
    monkeypatch.setitem(HEADS, "artefacts", [])
    code, _, err, _ = fovea("calibrate", "mine", verb="heads")
    assert code == 2
    assert "no retrieval heads" in err


def test_binary_artefacts_are_written_as_they_are(tmp_path):
    artefact = {"name": "edges.npz", "content": base64.b64encode(b"PK\x00\xff").decode(), "encoding": "base64"}
    probe.save_report({**HEADS, "artefacts": [artefact]}, "edges", tmp_path, Screen(as_json=False))
    assert (tmp_path / "edges.npz").read_bytes() == b"PK\x00\xff"


def test_counts_stay_whole_and_a_pipe_gets_all_digits(fovea, monkeypatch):
    monkeypatch.setitem(HEADS, "scalars", {"edges": {"value": 32491.0, "unit": "", "note": ""}})
    monkeypatch.setitem(HEADS, "tables", [{"name": "top", "columns": ["score"], "rows": [[0.123456789], [2048.0]]}])
    for form, told in (("table", ["32491", "0.123", "2048"]), ("csv", ["32491", "0.123456789", "2048"])):
        words = fovea("retrieval-heads", "--format", form)[1].replace(",", " ").split()
        assert [word for word in words if word[0].isdigit()] == told
