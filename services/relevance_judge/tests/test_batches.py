"""Batches of judgements."""

import csv
import io
import json
import threading
import time
from types import SimpleNamespace
from typing import Any

import pytest

from fovea.errors import Cancelled
from services.relevance_judge.batches import batch_runner, label_log, pair_selection
from services.relevance_judge.batches.batch_store import BatchStore
from services.relevance_judge.judges.prompted_grade import PromptedGrade
from services.relevance_judge.judges.word_overlap import WordOverlap
from services.relevance_judge.parsing.trec import parse_qrels
from services.relevance_judge.schemas import JudgeIn
from services.relevance_judge.storage.mini_collection import load_mini_collection
from services.relevance_judge.tests.conftest import post, serve_judges
from services.relevance_judge.tests.fake_endpoint import FakeModel, answered_by
from shared.registry import CallContext
from shared.storage import ObjectStore

MINI = load_mini_collection()
TOPICS = "1\twhy is the sky blue\n2\thow do bees make honey\n"
PASSAGES = "".join(json.dumps({"id": f"p{n}", "text": f"passage number {n}"}) + "\n" for n in range(5))


def _graded_by_number(body: dict[str, Any]) -> str:
    """Grades `passage number n` by n, where the last message shows it."""
    return str(int(body["messages"][-1]["content"].split("passage number ")[1][0]) % 4)


@pytest.fixture
def stage(tmp_path):
    """A service before a model that grades by number: `post` sends it a batch, `asked` counts what the model heard."""
    model = FakeModel(_graded_by_number)
    with serve_judges(tmp_path, {"prompted-grade": answered_by(model, PromptedGrade)}) as client:
        yield SimpleNamespace(
            client=client, model=model, post=lambda **body: client.post("/v1/judge/batches", json=body),
            asked=lambda: sum("messages" in body for body in model.asked),
        )  # fmt: skip


def test_topics_times_passages_are_labelled_and_come_in_every_form_by_an_id_that_is_never_a_path(stage):
    found = stage.post(topics=TOPICS, passages=PASSAGES).json()
    assert (found["pairs"], found["graded"], found["left"], found["failed"]) == (10, 10, 0, 0)
    assert (found["counts"], found["llm"]) == ([4, 2, 2, 2], "fake")
    qrels, lines, table = (stage.client.get(found["files"][form]).text for form in ("qrels", "jsonl", "csv"))
    labels = {(qid, f"p{n}"): n % 4 for qid in ("1", "2") for n in range(5)}
    assert parse_qrels(qrels) == labels
    assert {(row["qid"], row["docid"]): row["grade"] for row in map(json.loads, lines.splitlines())} == labels
    assert {(row["qid"], row["docid"]): int(row["grade"]) for row in csv.DictReader(io.StringIO(table))} == labels
    body = {"topics": TOPICS, "passages": PASSAGES}
    told = stage.client.post("/v1/judge/batches", json=body, headers={"accept": "text/plain"})
    assert told.headers["content-type"].startswith("text/plain")
    assert parse_qrels(told.text) == labels
    for name in ("zz", "..%2fkeys", "a" * 32):
        assert stage.client.get(f"/v1/judge/batches/{name}").status_code == 404


def test_a_run_has_its_holes_filled_equal_texts_are_asked_once_and_invalid_answers_are_not_zero(stage):
    runs = "".join(f"1 Q0 p{n} 0 {n} sys\n" for n in range(5)) + "1 Q0 p0 0 9 other\n1 Q0 p4 0 1 other\n"
    found = stage.post(topics=TOPICS, passages=PASSAGES, runs=runs, depth=3, qrels="1 0 p4 2\n").json()
    assert set(parse_qrels(stage.client.get(found["files"]["qrels"]).text)) == {("1", p) for p in ("p3", "p2", "p0")}
    rows = [{"qid": q, "docid": d, "query": "same", "passage": "passage number 3"} for q, d in ("ab", "cd", "ef")]
    found = stage.post(pairs="\n".join(map(json.dumps, rows)), options={"price": 1e6}).json()
    assert (found["pairs"], found["distinct"], found["graded"], stage.asked()) == (3, 1, 3, 3 + 1)
    assert (found["tokens"], found["cost"]) == (7, 7.0)
    stage.model.say = lambda _: "no idea"
    found = stage.post(topics="1\tq\n", passages=PASSAGES, options={"retries": 0}).json()
    assert (found["graded"], found["invalid"], found["counts"]) == (0, 5, [0, 0, 0, 0])
    assert stage.client.get(found["files"]["qrels"]).text == ""
    found = stage.post(topics="1\tq\n", passages=PASSAGES, options={"retries": 0, "impute": 1}).json()
    assert (found["graded"], found["invalid"], found["imputed"]) == (5, 5, 5)


def test_nothing_is_asked_twice_unless_options_template_or_model_differ(stage):
    first = stage.post(topics=TOPICS, passages=PASSAGES).json()
    again = stage.post(topics=TOPICS, passages=PASSAGES).json()
    assert (again["id"], again["reused"], stage.asked()) == (first["id"], 10, 10)
    larger = stage.post(topics=TOPICS + "3\tnew\n", passages=PASSAGES).json()
    assert (larger["reused"], stage.asked()) == (10, 15)
    assert larger["id"] != first["id"]
    for options in ({}, {"retries": 2}, {"template": "few-shot"}, {"llm": "another"}):
        stage.post(topics="1\tq\n", passages='{"id": "p", "text": "passage number 1"}', options=options)
    assert stage.asked() == 15 + 4


def test_an_endpoint_error_fails_its_pair_alone_until_it_is_asked_again_and_a_dead_endpoint_stops_the_batch(stage):
    ill = {"yes": True}

    def say(body: dict[str, Any]) -> str:
        if ill["yes"] and "passage number 2" in body["messages"][-1]["content"]:
            raise RuntimeError
        return _graded_by_number(body)

    stage.model.say = say
    found = stage.post(topics=TOPICS, passages=PASSAGES).json()
    assert (found["graded"], found["failed"], found["left"], found["stopped"]) == (8, 2, 0, None)
    assert sum(found["errors"].values()) == 2
    rows = map(json.loads, stage.client.get(found["files"]["jsonl"]).text.splitlines())
    assert [row["docid"] for row in rows if "error" in row] == ["p2", "p2"]
    ill["yes"] = False
    before = stage.asked()
    found = stage.post(topics=TOPICS, passages=PASSAGES).json()
    assert (found["graded"], found["failed"], stage.asked() - before) == (10, 0, 2)

    def fail(_: dict[str, Any]) -> str:
        raise RuntimeError

    stage.model.say = fail
    many = "".join(f"p{n}\ttext {n}\n" for n in range(40))
    found = stage.post(topics=TOPICS, passages=many, at_once=1).json()
    assert (found["stopped"], found["failed"], found["left"]) == ("endpoint", 20, 60)


def test_the_budget_stops_with_what_there_is_over_all_attempts_and_the_rate_limit_paces_the_pairs(stage):
    body = {"topics": TOPICS, "passages": PASSAGES, "at_once": 1}
    found = stage.post(**body, budget_tokens=21).json()  # 7 tokens a pair
    assert (found["stopped"], found["graded"], found["left"], found["tokens"]) == ("budget", 3, 7, 21)
    assert (stage.post(**body, budget_tokens=21).json()["graded"], stage.asked()) == (3, 3)
    more = stage.post(**body, budget_tokens=35).json()
    assert (more["id"], more["graded"]) == (found["id"], 5)
    priced = {**body, "options": {"price": 1e6}, "budget_cost": 14.0}
    assert (stage.post(**priced).json()["graded"], stage.post(**priced).json()["cost"]) == (2, pytest.approx(14.0))
    assert stage.post(**{**priced, "options": {"price": 1e-5}, "budget_cost": 1e308}).json()["stopped"] is None
    begun = time.monotonic()
    stage.post(topics="1\tq\n", passages=PASSAGES, per_minute=1200)
    assert time.monotonic() - begun >= 0.2


@pytest.mark.parametrize(("body", "status", "told"), [
    ({}, 422, "No pair"), ({"topics": "1 no tab", "passages": PASSAGES}, 400, "Line 1 of topics"),
    ({"topics": TOPICS, "passages": '{"id": 1}'}, 400, "Line 1 of passages"),
    ({"topics": TOPICS, "passages": "{broken"}, 400, "not JSON"),
    ({"topics": TOPICS, "passages": "p\ta\np\tb\n"}, 400, "another text"),
    ({"topics": TOPICS, "passages": PASSAGES, "runs": "9 Q0 p1 1 1 s"}, 422, "topics"),
    ({"topics": TOPICS, "passages": PASSAGES, "runs": "1 Q0 zz 1 1 s"}, 422, "passages"),
    ({"topics": "1 2\tq", "passages": PASSAGES}, 400, "white space"),
    ({"pairs": '{"qid": "1 2", "docid": "a", "query": "q", "passage": "p"}'}, 400, "white space"),
    ({"topics": TOPICS, "passages": f"{'d' * 257}\ttext"}, 400, "256 characters"),  # a batch holds it per topic
    ({"pairs": '{"qid": "1"}'}, 400, "lacks"), ({"topics": TOPICS, "passages": PASSAGES, "depth": 0}, 422, "depth"),
    ({"topics": TOPICS, "passages": PASSAGES, "model": "oracle"}, 404, "oracle"),
    ({"topics": TOPICS, "passages": PASSAGES, "options": {"template": "nope"}}, 404, "no template"),
    ({"topics": TOPICS, "passages": PASSAGES, "options": {"surprise": 1}}, 422, "options.surprise"),
    ({"topics": TOPICS, "passages": PASSAGES, "options": {"pairs": []}}, 422, "options.pairs"),
    ({"topics": TOPICS, "passages": PASSAGES, "options": {"calibration": "mine"}}, 404, "calibration"),
    ({"topics": TOPICS, "passages": PASSAGES, "budget_cost": 1}, 422, "price"),
    ({"topics": "1\ta\n", "passages": PASSAGES, "qrels": "1 0 p0"}, 400, "fields"),
])  # fmt: skip
def test_a_bad_batch_is_a_problem_with_a_reason(stage, body, status, told):
    answer = stage.post(**body)
    assert (answer.status_code, told in answer.text) == (status, True), answer.text
    assert (stage.asked(), stage.client.get("/v1/judge/batches").json()) == (0, [])


def _planned(folder, model, count):
    judge = PromptedGrade(model.client())
    request = JudgeIn.model_validate({"pairs": [{"query": "-", "passage": "-"}], "retries": 0})
    pairs = pair_selection.cross_pairs({"1": "q"}, {f"p{n}": f"passage number {n}" for n in range(count)})
    plan = batch_runner.plan_batch(judge, request, pairs, "fake")
    return plan, judge, request, BatchStore(ObjectStore.open(folder.as_uri())).label_log(plan.settings)


def test_a_cancelled_batch_keeps_every_label_that_was_given_and_progress_ends_at_one(tmp_path):
    run, kept = CallContext(), list[int]()

    def say(body: dict[str, Any]) -> str:
        if "passage number 3" in body["messages"][-1]["content"]:
            run.cancel()
        kept.append(len(label_log.read_label_log(path)))
        return "1"

    model = FakeModel(say)
    plan, judge, request, path = _planned(tmp_path, model, 10)
    with label_log.open_label_log(path, run) as log, pytest.raises(Cancelled):
        batch_runner.run_batch(plan, judge, request, log, batch_runner.BatchLimits(max_concurrent=2), run)
    assert all(kept[at] >= at - 2 for at in range(len(kept))), "a label is stored when it is given: a kill loses none"
    assert 1 <= len(label_log.read_label_log(path)) == len(model.asked) < 10
    with label_log.open_label_log(path, CallContext()) as log:
        assert batch_runner.run_batch(plan, judge, request, log, batch_runner.BatchLimits(), CallContext()) is None
    assert len(model.asked) == len(label_log.read_label_log(path)) == 10
    told: list[tuple[float, str | None]] = []
    plan, judge, request, path = _planned(tmp_path / "new", FakeModel(), 4)
    run = CallContext(report=lambda fraction, note: told.append((fraction, note)))
    with label_log.open_label_log(path, run) as log:
        batch_runner.run_batch(plan, judge, request, log, batch_runner.BatchLimits(max_concurrent=1), run)
    assert ([fraction for fraction, _ in told], told[-1][1]) == ([0, 0.25, 0.5, 0.75, 1], "4 of 4 pairs")


def test_half_a_line_counts_for_nothing_and_two_batches_write_one_after_the_other(tmp_path):
    path = ObjectStore.open(tmp_path.as_uri())
    raw = b'{"pair":"a","verdict":{}}\n{"pair":"b","ver\x00\n{"pair":"c","verdict":{}}\n{"pair":"d","ver'
    path.put("lines/0.jsonl", raw)
    assert [line["pair"] for line in label_log.read_label_log(path)] == ["a", "c"]
    with label_log.open_label_log(path, CallContext()) as log:
        assert [log.has_verdict(pair) for pair in "abcd"] == [True, False, True, False]
        log.append({"pair": "e", "verdict": {}})
    assert [line["pair"] for line in label_log.read_label_log(path)] == ["a", "c", "e"]
    order, waits, path = [], threading.Event(), ObjectStore.open(tmp_path.as_uri())

    def second() -> None:
        with label_log.open_label_log(path, CallContext(report=lambda *_: waits.set())) as log:
            order.append(f"second sees {log.has_verdict('a')}")

    with label_log.open_label_log(path, CallContext()) as log:
        thread = threading.Thread(target=second)
        thread.start()
        assert waits.wait(20)
        log.append({"pair": "a", "verdict": {}})
        order.append("first")
    thread.join(5)
    assert order == ["first", "second sees True"]
    gone = CallContext()
    gone.cancel()
    with label_log.open_label_log(path, CallContext()), pytest.raises(Cancelled), label_log.open_label_log(path, gone):
        pass


def test_a_judge_that_asks_no_model_needs_no_endpoint_and_an_uncalibrated_one_is_not_called_invalid(tmp_path):
    body = {"model": "word-overlap", "topics": TOPICS, "passages": PASSAGES}
    cuts = {"calibration": {**WordOverlap.card.example["calibration"], "cuts": [0.1, 0.3, 0.6]}}
    with serve_judges(tmp_path, {"word-overlap": WordOverlap}, judge_base_url="http://127.0.0.1:9") as client:
        found = post(client, "batches", body)
        again = post(client, "batches", {**body, "options": cuts})
        labels = {"reference": "1 0 p0 2\n", "judge": client.get(found["files"]["jsonl"]).text}
        report = post(client, "agreement", labels)
    assert (found["pairs"], found["failed"], found["uncalibrated"], found["invalid"]) == (10, 0, 10, 0)
    assert (found["tokens"], "not calibrated" in found["notes"][0]) == (0, True)
    assert (report["uncalibrated"], report["invalid"], report["invalid_by_grade"][2]) == (10, 0, 0.0)
    assert (again["uncalibrated"], again["graded"], again["notes"]) == (0, 10, [])
