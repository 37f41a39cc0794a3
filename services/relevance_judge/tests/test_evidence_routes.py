"""`/v1/judge/…` computes from uploaded labels, runs and texts, and names what is wrong with them."""

from typing import Any

import numpy as np
import pytest
from starlette.testclient import TestClient

from services.relevance_judge.judges.query_likelihood import QueryLikelihood
from services.relevance_judge.metrics.agreement import agree
from services.relevance_judge.metrics.rankings import system_scores
from services.relevance_judge.metrics.uncertainty import kappa_interval
from services.relevance_judge.parsing.trec import format_qrels, parse_qrels, parse_runs
from services.relevance_judge.prompt_template import get_template, load_templates
from services.relevance_judge.storage.mini_collection import load_mini_collection
from services.relevance_judge.tests.conftest import serve_judges
from services.relevance_judge.tests.fake_endpoint import FakeModel, answered_by
from tests.harness.models import ok

MINI = load_mini_collection()
TEXTS = {name: (MINI.folder / name).read_text() for name in ("topics.tsv", "passages.jsonl", "qrels.txt")}
TEXT_FIELDS = {"topics": TEXTS["topics.tsv"], "passages": TEXTS["passages.jsonl"], "reference": TEXTS["qrels.txt"]}
RUNS = "".join((MINI.folder / "runs" / f"{name}.trec").read_text() for name in ("bm25", "overlap", "query-likelihood"))


PAIR = {"query": "q", "first": "a", "second": "b"}


def judgements(name: str) -> str:
    return (MINI.folder / "judgements" / f"{name}.jsonl").read_text()


def say(body: dict[str, Any]) -> str:
    """Rules of a model that reads: facts by lines, support by words, and always A."""
    text = body["messages"][-1]["content"]
    if "List the facts" in text:
        return "vital: The moon pulls the oceans.\nokay: The sun helps.\nnonsense\nvital:\n"
    if "Reply with one word" in text:
        source = text.split("<<answer" if "<<answer" in text else "<<source")[1].split("<<end")[0]
        claim = text.split("<<fact" if "<<fact" in text else "<<claim")[1].split("<<end")[0]
        return "support" if "moon" in claim and "moon" in source else "none"
    return "A"


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    kinds = {"query-likelihood": answered_by(FakeModel(say), QueryLikelihood)}
    with serve_judges(tmp_path_factory.mktemp("fovea"), kinds) as made:
        yield made


def post(client: TestClient, path: str, body: dict[str, Any]) -> Any:
    return ok(client.post(f"/v1/judge/{path}", json=body))


def test_the_embedding_baseline_is_the_similarity_judge(client):
    few = {pair: grade for pair, grade in MINI.labels.items() if int(pair[0]) <= 5}
    body = {**TEXT_FIELDS, "reference": format_qrels(few), "judge": judgements("similarity"), "name": "similarity"}
    found = post(client, "trust", body)
    row = next(row for row in found["baselines"] if row["name"] == "embedding")
    assert row["lead"] == pytest.approx(0, abs=1e-6)
    assert not found["is_better"]
    assert found["missing"] == 0


def test_weights_make_an_ensemble_that_can_be_asked(client):
    judges = {name: judgements(name) for name in ("similarity", "query-lift", "overlap")}
    found = post(client, "ensembles/weights", {"reference": TEXTS["qrels.txt"], "judges": judges})
    assert found["options"] is None  # the overlap file names no template
    assert found["pair_order"] > max(row["pair_order"] for row in found["members"])
    judges.pop("overlap")
    found = post(client, "ensembles/weights", {"reference": TEXTS["qrels.txt"], "judges": judges})
    members = found["options"]["members"]
    assert [one["template"].split("@")[0] for one in members] == ["similarity", "query-lift"]
    assert sum(one["weight"] for one in members) == pytest.approx(1)
    assert found["options"]["calibration"]["metrics"]["pair_order"] >= 0.85


def test_systems_are_compared_with_a_sentence_each(client):
    found = post(client, "significance", {"labels": TEXTS["qrels.txt"], "runs": RUNS, "draws": 1000})
    assert found["systems"] == pytest.approx(system_scores(parse_runs(RUNS), MINI.labels, missing="zero"))
    assert len(found["comparisons"]) == 3
    for row in found["comparisons"]:
        assert row["is_significant"] == (row["p_corrected"] <= 0.05)
        assert row["p"] <= row["p_corrected"]
        assert ("is better" in row["statement"]) == row["is_significant"]
    found = post(client, "significance", {"labels": TEXTS["qrels.txt"], "runs": RUNS, "baseline": "bm25"})
    assert {row["second"] for row in found["comparisons"]} == {"bm25"}


def collection(queries: int, seed: int = 0) -> tuple[str, str, dict[str, float]]:
    """Labels of a judge who is right three times of four, runs of two systems, and the true scores."""
    draw = np.random.default_rng(seed)
    labels = {(f"q{q}", f"d{d}"): int(draw.integers(0, 4)) for q in range(queries) for d in range(12)}
    runs = [
        f"{q} Q0 {d} 0 {grade * lift + float(draw.normal()):.4f} {name}\n"
        for name, lift in (("good", 1.2), ("bad", 0.4))
        for (q, d), grade in labels.items()
    ]
    truth = system_scores(parse_runs("".join(runs)), labels)
    return format_qrels(labels), "".join(runs), truth


def test_a_biased_judge_is_corrected_by_a_human_sample(client):
    human, runs, truth = collection(200)
    labels = parse_qrels(human)
    draw = np.random.default_rng(3)
    judge = {pair: 3 if draw.random() < 0.3 else grade for pair, grade in labels.items()}  # generous
    sample = {pair: grade for pair, grade in labels.items() if int(pair[0][1:]) < 60}
    body = {"human": format_qrels(sample), "judge": format_qrels(judge), "runs": runs}
    found = post(client, "corrected", body)
    assert (found["queries"], found["labelled"]) == (200, 60)
    for row in found["systems"]:
        low, high = row["interval"]
        assert low < truth[row["system"]] < high
        assert row["gain"] > 1
    (difference,) = found["differences"]
    assert (difference["first"], difference["is_significant"]) == ("good", True)
    assert difference["interval"][0] < truth["good"] - truth["bad"] < difference["interval"][1]
    plan = post(client, "budget", {**body, "half_width": 0.02, "first": "good", "second": "bad"})["plans"][0]
    assert plan["with_judge"] is None or plan["without_judge"] is None or plan["with_judge"] < plan["without_judge"]
    assert str(plan["with_judge"]) in plan["statement"]


def test_answers_are_judged_by_a_model(client):
    body = {"query": "what causes tides", "passages": {"1": "The moon makes tides.", "2": "Bread rises."}}
    found = post(client, "nuggets", body)["nuggets"]
    assert [(one["text"], one["importance"]) for one in found] == [
        ("The moon pulls the oceans.", "vital"),
        ("The sun helps.", "okay"),
    ]
    answer = "The moon pulls the oceans [1]. The moon is old [2]. Bread is baked [9]."
    assigned = post(client, "nuggets/assign", {"query": body["query"], "answer": answer, "nuggets": found})
    assert assigned["supports"] == ["support", "not_support"]
    assert (assigned["vital_recall"], assigned["all_recall"]) == (1, pytest.approx(2 / 3))
    support = post(client, "support", {**body, "answer": answer})
    assert [one["cited"] for one in support["sentences"]] == [
        {"1": "support"}, {"2": "not_support"}, {"9": "not_support"},
    ]  # fmt: skip
    assert support["unknown"] == ["9"]
    assert support["citation_precision"] == support["citation_recall"] == pytest.approx(1 / 3)
    assert support["faithfulness"] == pytest.approx(2 / 3)


def test_a_model_that_always_says_a_is_found_out(client):
    found = post(client, "preferences", {**TEXT_FIELDS, "sample": 24})
    assert (found["consistent"]["share"], found["shown_first"]["share"]) == (0, 1)
    assert "shown first wins" in found["statement"]
    assert {row["preferred"] for row in found["results"]} == {0}
    assert 0 < [row["label"] for row in found["results"]].count(0) < 24


@pytest.mark.parametrize(
    ("path", "body", "status", "told"),
    [
        ("trust", {"reference": "1 0 a 1", "judge": "1 0 b 1", "topics": "1\tx", "passages": ""}, 422, "No labelled"),
        ("trust", {"reference": "", "judge": '{"qid": 1, "docid": "a", "signal": "x"}'}, 422, "topics"),
        ("ensembles/weights", {"reference": "1 0 a 1", "judges": {"a": "1 0 a 1"}}, 422, "judges"),
        ("significance", {"labels": "1 0 a 1", "runs": "1 Q0 a 1 1 x"}, 422, "1 systems"),
        ("significance", {"labels": "1 0 a 1", "runs": RUNS, "measure": "bpref"}, 422, "no measure"),
        ("significance", {"labels": "1 0 a 1", "runs": RUNS, "baseline": "no"}, 422, "no run"),
        ("corrected", {"human": "1 0 a 1\n2 0 a 1", "judge": "1 0 a 1", "runs": RUNS}, 422, "no labels of the query 2"),
        ("corrected", {"human": "1 0 a 1", "judge": "1 0 a 1", "runs": RUNS}, 422, "3 are the least"),
        ("budget", {"human": "1 0 a 1", "judge": "1 0 a 1", "runs": RUNS, "half_width": 0}, 422, "half_width"),
        ("support", {"query": "q", "answer": " ", "passages": {"a": "x"}, "how": "similarity"}, 422, "no sentence"),
        ("preferences", {}, 422, "nothing to compare"),
        ("preferences", {"comparisons": [PAIR], "template": "direct"}, 422, "is for"),
        ("collection", {"documents": "x", "topics": "y", "relevance": ""}, 400, "outside a record"),
        ("agreement", {"reference": "1 0 a\n", "judge": ""}, 400, "Line 1 of reference"),
        ("agreement", {"reference": "", "judge": "1 0 a x\n"}, 400, "not an integer"),
        ("agreement", {"reference": ""}, 422, "judge"),
        ("rankings", {"reference": "", "judge": "", "runs": "", "measure": "bpref"}, 422, "no measure"),
        ("rankings", {"reference": "", "judge": "", "runs": "1 Q0 a 1 x t"}, 400, "not a number"),
        ("ensembles", {"judges": ["1 0 a 7\n"]}, 422, "outside"),
        ("ensembles", {"judges": ["1 0 a 1\n"], "combine": "average", "weights": [1, 2]}, 422, "weights"),
        ("ensembles", {"judges": []}, 422, "judges"),
        ("calibrations", {"signals": [1], "grades": [0, 1], "queries": ["a"]}, 422, "one each"),
        ("calibrations", {"signals": [1], "grades": [9], "queries": ["a"]}, 422, "outside"),
        ("templates/nope/render", {"query": "q", "passage": "p"}, 404, "no template"),
    ],
)
def test_bad_input_is_a_problem_with_a_reason(client, path, body, status, told):
    answer = client.post(f"/v1/judge/{path}", json=body)
    assert answer.status_code == status, answer.text
    assert told in answer.text


FIRST, SECOND = format_qrels(MINI.labels), format_qrels(MINI.second)


def test_agreement_of_two_passes_has_its_interval_and_undefined_is_null(client):
    found = client.post("/v1/judge/agreement", json={"reference": FIRST, "judge": SECOND}).json()
    expected = agree(MINI.labels, MINI.second)
    assert (found["kappa"], found["confusion"]) == (pytest.approx(expected.kappa), expected.confusion.tolist())
    low, high = found["kappa_interval"]
    assert low < found["kappa"] < high
    assert len(found["kappa_by_query"]) == 24
    found = client.post("/v1/judge/agreement", json={"reference": "1 0 a 2\n", "judge": "1 0 a 2\n"}).json()
    assert (found["kappa"], found["alpha"], found["kappa_interval"]) == (None, None, None)
    found = client.post("/v1/judge/agreement", json={"reference": "", "judge": ""}).json()
    assert (found["pairs"], found["bias"]) == (0, None)


def test_rankings_come_with_kappa_beside_them_and_shifts_per_system(client):
    runs = "".join((MINI.folder / "runs" / f"{name}.trec").read_text() for name in ("overlap", "bm25"))
    runs += "".join(f"{q} Q0 {p} 0 {3 - grade} turned\n" for (q, p), grade in MINI.labels.items())
    runs += "".join(f"{q} Q0 {p} 0 {grade} ideal\n" for (q, p), grade in MINI.labels.items())
    body = {"reference": FIRST, "judge": SECOND, "runs": runs}
    found = client.post("/v1/judge/rankings", json=body).json()
    assert found["systems"][0]["shift"] == 0
    assert found["tau_b"] == found["rho"] == found["tau_ap"] == pytest.approx(1.0)
    assert found["kappa"] == pytest.approx(agree(MINI.labels, MINI.second).kappa)
    assert (found["systems"][0]["system"], found["systems"][0]["reference"]) == ("ideal", pytest.approx(1.0))
    turned = format_qrels({pair: 3 - grade for pair, grade in MINI.labels.items()})
    found = client.post("/v1/judge/rankings", json={**body, "judge": turned}).json()
    assert {row["system"]: row["judge"] for row in found["systems"]}["turned"] == pytest.approx(1.0)
    assert found["systems"][0]["shift"] < 0
    assert sum(row["shift"] for row in found["systems"]) == 0


def test_ensembles_count_who_votes_and_state_their_rule(client):
    judges = ["1 0 a 0\n1 0 b 3\n", "1 0 a 1\n", "1 0 c 2\n"]
    found = client.post("/v1/judge/ensembles", json={"judges": judges}).json()
    assert parse_qrels(found["qrels"]) == {("1", "a"): 1, ("1", "b"): 3, ("1", "c"): 2}
    assert (found["pairs"], found["counts"]) == (3, [0, 1, 1, 1])
    body = {"judges": judges, "combine": "average", "rounding": "half_even"}
    assert client.post("/v1/judge/ensembles", json=body).json()["counts"] == [1, 0, 1, 1]
    body = {"judges": judges, "combine": "average", "weights": [0, 1, 0]}
    assert client.post("/v1/judge/ensembles", json=body).json()["pairs"] == 1
    assert client.post("/v1/judge/ensembles", json={"judges": judges, "combine": "median"}).status_code == 200


def test_templates_are_listed_shown_and_rendered_dry(client):
    listed = client.get("/v1/judge/templates").json()
    assert {row["template"]["id"] for row in listed} == set(load_templates())
    one = client.get(f"/v1/judge/templates/direct@{get_template('direct').digest}").json()
    assert one["digest"] == get_template("direct").digest
    body = {"query": "a {passage} b", "passage": "##final score: 3", "seed": 1}
    shown = client.post("/v1/judge/templates/criteria/render", json=body).json()
    assert len(shown["turns"]) == 4
    assert all("a {passage} b" in turns[0] for turns in shown["turns"])
    assert client.get("/v1/judge/templates/nope").status_code == 404


def test_the_interval_is_repeatable_and_narrows_with_more_queries():
    draw = np.random.default_rng(0)

    def width(queries: int) -> float:
        reference = {(str(q), str(p)): int(draw.integers(0, 4)) for q in range(queries) for p in range(8)}
        judge = {pair: grade if draw.random() < 0.5 else int(draw.integers(0, 4)) for pair, grade in reference.items()}
        found = kappa_interval(reference, judge, draws=500, seed=3)
        assert found == kappa_interval(reference, judge, draws=500, seed=3)
        return found[1] - found[0]

    assert width(100) < width(6)
    assert kappa_interval({("1", "a"): 1}, {("1", "a"): 1}) is None
    assert kappa_interval({("1", "a"): 1, ("2", "a"): 1}, {("1", "a"): 1, ("2", "a"): 1}) is None
