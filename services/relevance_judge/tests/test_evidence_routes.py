"""Routes below `/v1/judge/`: evidence from uploaded labels, runs and texts, and calibrations in versions."""

import json
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from fovea.errors import NotFound
from services.relevance_judge.judges.log_odds import LogOdds
from services.relevance_judge.judges.prompted_grade import PromptedGrade
from services.relevance_judge.judges.query_likelihood import QueryLikelihood
from services.relevance_judge.metrics.agreement import agree
from services.relevance_judge.metrics.bootstrap import draw_ratios
from services.relevance_judge.metrics.uncertainty import kappa_interval
from services.relevance_judge.parsing.trec import format_qrels, parse_qrels
from services.relevance_judge.prompt_template import get_template, load_templates
from services.relevance_judge.routes import trust
from services.relevance_judge.storage.mini_collection import load_mini_collection
from services.relevance_judge.storage.versioned_store import VersionedStore
from services.relevance_judge.tests.conftest import post, serve_judges
from services.relevance_judge.tests.fake_endpoint import FakeModel, answered_by
from shared.storage import ObjectStore

MINI = load_mini_collection()
DIGITS = {"0": -3.0, "1": -2.0, "2": -0.5, "3": -1.5}
TEXTS = {name: (MINI.folder / name).read_text() for name in ("topics.tsv", "passages.jsonl", "qrels.txt")}
TEXT_FIELDS = {"topics": TEXTS["topics.tsv"], "passages": TEXTS["passages.jsonl"], "reference": TEXTS["qrels.txt"]}


def judgements(name: str) -> str:
    return (MINI.folder / "judgements" / f"{name}.jsonl").read_text()


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    model = FakeModel(first=DIGITS)
    kinds = {kind.card.name: answered_by(model, kind) for kind in (PromptedGrade, LogOdds, QueryLikelihood)}
    with serve_judges(tmp_path_factory.mktemp("fovea"), kinds) as made:
        yield made


def test_the_embedding_baseline_is_the_similarity_judge_and_weights_make_an_ensemble_that_can_be_asked(client):
    few = {pair: grade for pair, grade in MINI.labels.items() if int(pair[0]) <= 5}
    body = {**TEXT_FIELDS, "reference": format_qrels(few), "judge": judgements("similarity"), "name": "similarity"}
    found = post(client, "trust", body)
    row = next(row for row in found["baselines"] if row["name"] == "embedding")
    assert row["lead"] == pytest.approx(0, abs=1e-6)
    assert not found["is_better"]
    assert found["missing"] == 0
    texts = {f"{place}": "tides" for place in range(4000)}
    tracemalloc.start()
    trust._lexical_baselines([(name, "0") for name in [*texts][:200]], texts, texts)
    assert tracemalloc.get_traced_memory()[1] < 3e7  # no score of all passages for all topics
    tracemalloc.stop()
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


@pytest.mark.parametrize(("path", "body", "status", "told"), [
    ("trust", {"reference": "1 0 a 1", "judge": "1 0 b 1", "topics": "1\tx", "passages": ""}, 422, "No labelled"),
    ("trust", {"reference": "", "judge": '{"qid": 1, "docid": "a", "signal": "x"}'}, 422, "topics"),
    ("ensembles/weights", {"reference": "1 0 a 1", "judges": {"a": "1 0 a 1"}}, 422, "judges"),
    ("agreement", {"reference": "1 0 a\n", "judge": ""}, 400, "Line 1 of reference"),
    ("agreement", {"reference": "1 0 a 1", "judge": "1 0 a x\n"}, 400, "not an integer"),
    ("agreement", {"reference": "\n", "judge": "1 0 a 1\n"}, 422, "The reference holds no label."),
    ("ensembles/weights", {"reference": "", "judges": dict.fromkeys("ab", "1 0 a 1")}, 422, "holds no label"),
    ("agreement", {"reference": ""}, 422, "judge"),
    ("ensembles", {"judges": ["1 0 a 7\n"]}, 422, "outside"),
    ("ensembles", {"judges": ["1 0 a 1\n"], "combine": "average", "weights": [1, 2]}, 422, "weights"),
    ("ensembles", {"judges": ["1 0 a 1\n"], "weights": [2]}, 422, "majority has no weights"),
    ("ensembles", {"judges": ["1 0 a 3\n"], "combine": "average", "weights": [1e308]}, 422, "weights"),
    ("ensembles", {"judges": []}, 422, "judges"),
    ("calibrations", {"signals": [1], "grades": [0, 1], "queries": ["a"]}, 422, "one each"),
    ("calibrations", {"signals": [1], "grades": [9], "queries": ["a"]}, 422, "outside"),
    ("templates/nope/render", {"query": "q", "passage": "p"}, 404, "no template"),
])  # fmt: skip
def test_bad_input_is_a_problem_with_a_reason(client, path, body, status, told):
    answer = client.post(f"/v1/judge/{path}", json=body)
    assert (answer.status_code, told in answer.text) == (status, True), answer.text


FIRST, SECOND = format_qrels(MINI.labels), format_qrels(MINI.second)


def test_agreement_comes_with_interval_bias_invalid_shares_and_disagreements_the_widest_first(client):
    found = client.post("/v1/judge/agreement", json={"reference": FIRST, "judge": SECOND}).json()
    expected = agree(MINI.labels, MINI.second)
    assert (found["kappa"], found["confusion"]) == (pytest.approx(expected.kappa), expected.confusion)
    low, high = found["kappa_interval"]
    assert low < found["kappa"] < high
    assert len(found["kappa_by_query"]) == 24
    found = client.post("/v1/judge/agreement", json={"reference": "1 0 a 2\n", "judge": "1 0 a 2\n"}).json()
    assert (found["kappa"], found["alpha"], found["kappa_interval"]) == (None, None, None)
    found = client.post("/v1/judge/agreement", json={"reference": "1 0 a 2", "judge": ""}).json()
    assert (found["pairs"], found["bias"]) == (0, None)
    rows = [{"qid": q, "docid": d, "grade": 3, "valid": True} for q, d in MINI.labels if d != "m01-1"]
    rows += [{"qid": q, "docid": d, "grade": None, "valid": False} for q, d in MINI.labels if d == "m01-1"]
    found = post(client, "agreement", {**TEXT_FIELDS, "judge": "\n".join(map(json.dumps, rows)), "draws": 50})
    assert (found["invalid"], found["pairs"], found["invalid_by_grade"]) == (1, 191, [0, 0, 0, pytest.approx(1 / 48)])
    assert (found["bias_by_text"]["pairs"], {row["reference"] for row in found["disagreements"][:48]}) == (191, {0})
    assert found["disagreements"][-1]["reference"] == 2
    body = {"reference": "1 0 a -2\n1 0 b 1\n1 0 c 9\n1 0 d 0\n", "judge": "1 0 a 0\n1 0 b 2\n1 0 c 3\n1 0 d 3\n"}
    found = post(client, "agreement", body)
    assert found["confusion"] == [[1, 0, 0, 1], [0, 0, 1, 0], [0, 0, 0, 0], [0, 0, 0, 1]]
    told = [(one["docid"], one["reference"], one["judge"]) for one in found["disagreements"]]
    assert told == [("d", 0, 3), ("b", 1, 2)]


def test_ensembles_count_who_votes_and_templates_are_listed_shown_and_rendered_dry(client):
    judges = ["1 0 a 0\n1 0 b 3\n", "1 0 a 1\n", "1 0 c 2\n"]
    found = client.post("/v1/judge/ensembles", json={"judges": judges}).json()
    assert parse_qrels(found["qrels"]) == {("1", "a"): 1, ("1", "b"): 3, ("1", "c"): 2}
    assert (found["pairs"], found["counts"]) == (3, [0, 1, 1, 1])
    body = {"judges": judges, "combine": "average", "rounding": "half_even"}
    assert client.post("/v1/judge/ensembles", json=body).json()["counts"] == [1, 0, 1, 1]
    body = {"judges": judges, "combine": "average", "weights": [0, 1, 0]}
    assert client.post("/v1/judge/ensembles", json=body).json()["pairs"] == 1
    assert client.post("/v1/judge/ensembles", json={"judges": judges, "combine": "median"}).status_code == 200
    tied = ["1 0 a 0\n1 0 b 3\n1 0 c 2\n", "1 0 c 1\n1 0 b 1\n1 0 a 2\n"]
    for seed in range(4):
        asked = [{"judges": order, "tie": "random", "seed": seed} for order in (tied, tied[::-1])]
        first, second = (client.post("/v1/judge/ensembles", json=body).json()["qrels"] for body in asked)
        assert parse_qrels(first) == parse_qrels(second)
    assert first.split()[2::4] == ["a", "b", "c"] != second.split()[2::4], "in the order of their first judge"
    assert {row["template"]["id"] for row in client.get("/v1/judge/templates").json()} == set(load_templates())
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
    many = {(f"{q}", "a"): q % 4 for q in range(3000)}
    tracemalloc.start()
    assert kappa_interval(many, many, draws=1000) == (1, 1)
    assert draw_ratios([{name: (1, 2) for name, _ in many}], draws=1000, seed=1).tolist() == [[0.5] * 1000]
    assert tracemalloc.get_traced_memory()[1] < 1e7  # a sample at a time
    tracemalloc.stop()
    assert kappa_interval({("1", "a"): 1}, {("1", "a"): 1}) is None
    assert kappa_interval({("1", "a"): 1, ("2", "a"): 1}, {("1", "a"): 1, ("2", "a"): 1}) is None


TRAINING: dict[str, Any] = {
    "signals": [0.1, 0.9, 1.9, 2.9] * 6, "grades": [0, 1, 2, 3] * 6, "queries": [str(n // 4) for n in range(24)],
    "pairs": [f"{n // 4} p{n}" for n in range(24)],
}  # fmt: skip


def test_a_calibration_is_kept_in_versions_with_its_model_and_warnings_or_not_found(client):
    owner = {"name": "smol.digits", "model": "fake", "template": f"digits@{get_template('digits').digest}"}
    first = client.post("/v1/judge/calibrations", json={**TRAINING, **owner}).json()
    second = client.post("/v1/judge/calibrations", json={**TRAINING, **owner, "how": "kappa"}).json()
    assert [first["version"], second["version"]] == [1, 2]
    assert client.get("/v1/judge/calibrations/smol.digits@1").json() == first
    assert client.get("/v1/judge/calibrations/smol.digits").json() == second
    (row,) = [row for row in client.get("/v1/judge/calibrations").json() if row["name"] == "smol.digits"]
    assert (row["versions"], first["calibration"]["training"]) == ([1, 2], TRAINING["pairs"])
    body = {"model": "log-odds", "query": "q", "passages": ["p"], "calibration": "smol.digits@1"}
    answer = client.post("/v1/judge", json=body).json()
    assert answer["results"][0]["calibration"] == f"smol.digits@1:{first['digest']}"
    assert answer["results"][0]["grade"] in range(4)
    for owner in ({"name": "other-model", "model": "gpt"}, {"name": "other-template", "template": "yes-no@0"}):
        client.post("/v1/judge/calibrations", json={**TRAINING, **owner})
        body = {"model": "log-odds", "query": "q", "passages": ["p"], "calibration": owner["name"]}
        answer = client.post("/v1/judge", json=body)
        assert (answer.status_code, answer.json()["field"]) == (422, "calibration")
    few = {name: values[:4] for name, values in TRAINING.items()}
    client.post("/v1/judge/calibrations", json={**few, "name": "few"})
    body = {"model": "log-odds", "query": "q", "passages": ["p"], "calibration": "few"}
    assert len(client.post("/v1/judge", json=body).json()["notes"]) == 2
    for name in ("nope", "smol.digits@99", f"smol.digits@{'9' * 5000}", "..%2fx"):
        assert client.get(f"/v1/judge/calibrations/{name}").status_code == 404
    for changed in ({"name": "Not A Name"}, {"pairs": ["one"]}, {"name": "../up"}):
        assert client.post("/v1/judge/calibrations", json={**TRAINING, **changed}).status_code == 422


def test_versions_are_never_written_over_by_writers_at_the_same_time(tmp_path):
    store = VersionedStore(ObjectStore.open(tmp_path.as_uri()), "thing")
    with ThreadPoolExecutor(12) as pool:
        versions = list(pool.map(lambda n: store.add("x", {"n": n}), range(12)))
    assert sorted(versions) == list(range(1, 13))
    assert ([store.get(f"x@{v}")[2]["n"] for v in versions], store.list_names()) == (list(range(12)), ["x"])
    with pytest.raises(NotFound, match="versions"):
        store.get("x@13")


def test_the_backend_is_told_without_its_secrets_probed_on_demand_or_away(client, tmp_path):
    (plain,) = client.get("/v1/judge/backends").json()
    assert (plain["reachable"], plain["models"], plain["answers_logprobs"]) == (True, ["fake", "other"], None)
    (probed,) = client.get("/v1/judge/backends?probe=true").json()
    assert (probed["answers_logprobs"], probed["prompt_logprobs"]) == (True, True)
    away = "http://me:secret@127.0.0.1:9/"
    with serve_judges(tmp_path, {"prompted-grade": PromptedGrade}, judge_base_url=away) as made:
        told = made.get("/v1/judge/backends")
    (found,) = told.json()
    assert (found["reachable"], found["base_url"]) == (False, "http://127.0.0.1:9/")
    assert "reached" in found["trouble"]
    assert "secret" not in told.text
