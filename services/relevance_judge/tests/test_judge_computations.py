"""`/v1/judge/…` computes from uploaded labels and runs, and names what is wrong with them."""

from typing import Any

import numpy as np
import pytest

from services.relevance_judge.metrics.agreement import agree
from services.relevance_judge.metrics.uncertainty import kappa_interval
from services.relevance_judge.parsing.trec import format_qrels, parse_qrels
from services.relevance_judge.prompt_template import get_template, load_templates
from services.relevance_judge.storage.mini_collection import load_mini_collection
from services.relevance_judge.tests.conftest import serve_judges

MINI = load_mini_collection()
FIRST, SECOND = format_qrels(MINI.labels), format_qrels(MINI.second)


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    with serve_judges(tmp_path_factory.mktemp("fovea"), {}) as made:
        yield made


def test_agreement_of_the_two_label_passes_with_its_interval(client):
    found = client.post("/v1/judge/agreement", json={"reference": FIRST, "judge": SECOND}).json()
    expected = agree(MINI.labels, MINI.second)
    assert (found["kappa"], found["confusion"]) == (pytest.approx(expected.kappa), expected.confusion.tolist())
    low, high = found["kappa_interval"]
    assert low < found["kappa"] < high
    assert len(found["kappa_by_query"]) == 24


def test_undefined_is_null_and_not_a_crash(client):
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


def test_a_calibration_is_fitted_and_names_what_it_belongs_to(client):
    grades = list(MINI.labels.values())
    body: dict[str, Any] = {"signals": grades, "grades": grades, "queries": [q for q, _ in MINI.labels], "model": "m"}
    found = client.post("/v1/judge/calibrations", json=body).json()
    assert (found["calibration"]["model"], found["calibration"]["metrics"]["kappa"]) == ("m", pytest.approx(1.0))
    other = client.post("/v1/judge/calibrations", json={**body, "model": "n"}).json()
    assert other["digest"] != found["digest"]


@pytest.mark.parametrize(
    ("path", "body", "status", "told"),
    [
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
