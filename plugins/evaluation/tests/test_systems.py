"""Systems: measures are those of trec_eval, comparisons those of SciPy; routes name what is wrong with uploads."""

import json
import lzma
from typing import Any

import numpy as np
import pytest

from fovea.errors import InvalidOption
from fovea_evaluation.metrics.leaderboard import LeaderboardEntry, build_leaderboard
from fovea_evaluation.metrics.rankings import compare, evaluate, system_scores
from plugins.evaluation.tests.conftest import GOLDEN
from services.relevance_judge.metrics.agreement import agree
from services.relevance_judge.parsing.label_formats import LabelSet
from services.relevance_judge.parsing.trec import format_qrels, parse_qrels, parse_runs
from services.relevance_judge.storage.mini_collection import load_mini_collection
from services.relevance_judge.tests.conftest import GOLDEN as CORE_GOLDEN
from services.relevance_judge.tests.conftest import post

SIGNAL = json.dumps({"qid": "1", "docid": "a", "grade": None, "signal": 0.5, "reason": "uncalibrated"})
"""A line of a batch whose judge has no calibration."""


def _same(found: float | None, expected: float | None) -> bool:
    return found is expected is None or (None not in (found, expected) and found == pytest.approx(expected, abs=1e-6))


def test_measures_match_trec_eval_on_ties_float32_and_unjudged(golden):
    for case in golden("trec_measures.json")["cases"]:
        labels = {("q", passage): grade for passage, grade in case["qrels"].items()}
        measures = list(case["expected"])
        found = evaluate({"q": case["run"]}, labels, measures=measures, relevance_level=case["relevance_level"])
        assert found["q"] == pytest.approx(case["expected"], abs=1e-6)


def test_synthetic_systems_are_ranked_as_trec_eval_ranks_them(golden, released):
    told = golden("system_ranking.json")
    runs = parse_runs(lzma.decompress((GOLDEN / "runs.trec.xz").read_bytes()).decode())
    labels = {
        name: {pair: min(max(grade, 0), 3) for pair, grade in released(name).items()}
        for name in (told["reference"], *told["judges"])
    }
    truth = {
        measure: system_scores(runs, labels[told["reference"]], measure=measure, relevance_level=2)
        for measure in ("ndcg_cut_10", "map", "P_10", "recip_rank", "recall_20")
    }
    for tag, row in told["measures_under_reference"].items():
        assert {measure: truth[measure][tag] for measure in row} == pytest.approx(row, abs=1e-6)
    for name, row in told["judges"].items():
        scores = system_scores(runs, labels[name])
        assert scores == pytest.approx(row["ndcg_cut_10"], abs=1e-6)
        found = compare(truth["ndcg_cut_10"], scores)
        by_map = compare(truth["map"], system_scores(runs, labels[name], measure="map", relevance_level=2))
        correlations = (row["kendall_tau_b"], row["spearman_rho"], row["map_tau_b"])
        assert (found.tau_b, found.rho, by_map.tau_b) == pytest.approx(correlations, abs=1e-6)


def test_correlations_match_the_oracle_and_are_none_where_undefined():
    for case in json.loads((CORE_GOLDEN / "agreement_vectors.json").read_text())["rank_pairs"]:
        found = compare(*({str(tag): score for tag, score in enumerate(case[one])} for one in ("truth", "estimate")))
        assert _same(found.tau_b, case["kendall_tau_b"])
        assert _same(found.rho, case["spearman"])
        assert _same(found.tau_ap, case["tau_ap"])
    assert compare({"a": 1.0}, {"a": 2.0, "b": 1.0}).tau_b is None


def test_a_query_without_a_relevant_passage_scores_zero_and_one_without_a_run_or_a_judged_passage_does_not_count():
    labels = {("q1", "a"): 0, ("q2", "a"): 3}
    found = evaluate({"q1": {"a": 1.0}}, labels, measures=["ndcg", "map", "recall_5"])
    assert found == {"q1": {"ndcg": 0.0, "map": 0.0, "recall_5": 0.0}}
    assert system_scores({"s": {"q9": {"a": 1.0}}}, labels) == {}
    runs = {"whole": {"q1": {"a": 1.0}, "q2": {"a": 1.0}}, "part": {"q2": {"a": 1.0}}}
    assert system_scores(runs, labels, measure="P_1") == {"whole": 0.5, "part": 1.0}
    assert system_scores(runs, labels, measure="P_1", missing="zero") == {"whole": 0.5, "part": 0.5}
    assert system_scores({"none": {"9": {"a": 1.0}}}, labels, missing="zero") == {"none": 0.0}
    run = {"q": {"new": 3.0, "a": 2.0, "other": 1.0}}
    found = evaluate(run, {("q", "a"): 0}, measures=["map", "recall_3", "recip_rank", "P_1"], relevance_level=0)
    assert found == {"q": {"map": 0.5, "recall_3": 1.0, "recip_rank": 0.5, "P_1": 0.0}}


@pytest.mark.parametrize("name", ["bpref", "P_0", "P_²", "P_" + "9" * 5000, "ndcg_cut_x", "map_10", ""])
def test_an_unknown_measure_is_refused(name):
    with pytest.raises(InvalidOption, match="no measure"):
        evaluate({}, {}, measures=[name])


MINI = load_mini_collection()
FIRST, SECOND = format_qrels(MINI.labels), format_qrels(MINI.second)
PAIR = {"query": "q", "first": "a", "second": "b"}
RUNS = "".join((MINI.folder / "runs" / f"{name}.trec").read_text() for name in ("bm25", "overlap", "query-likelihood"))
TWO = "".join((MINI.folder / "runs" / f"{name}.trec").read_text() for name in ("overlap", "bm25"))
IDEAL = "".join(f"{q} Q0 {p} 0 {grade} ideal\n" for (q, p), grade in MINI.labels.items())


def test_systems_are_compared_with_a_sentence_each_that_names_the_interval_asked_for(client):
    found = post(client, "significance", {"labels": FIRST, "runs": RUNS, "draws": 1000})
    assert found["systems"] == pytest.approx(system_scores(parse_runs(RUNS), MINI.labels, missing="zero"))
    assert len(found["comparisons"]) == 3
    for row in found["comparisons"]:
        assert row["is_significant"] == (row["p_corrected"] <= 0.05)
        assert row["p"] <= row["p_corrected"]
        assert ("is better" in row["statement"]) == row["is_significant"]
    found = post(client, "significance", {"labels": FIRST, "runs": RUNS, "baseline": "bm25"})
    assert {row["second"] for row in found["comparisons"]} == {"bm25"}
    found = post(client, "significance", {"labels": FIRST, "runs": RUNS, "baseline": "query-likelihood"})
    for row in found["comparisons"]:  # the baseline is better, so that differences are negative
        low, high = row["interval"]
        assert f"interval {-high:+.4f} to {-low:+.4f}" in row["statement"]
    found = post(client, "significance", {"labels": FIRST, "runs": RUNS, "draws": 100, "level": 0.001})
    assert "(99.9% interval" in found["comparisons"][0]["statement"]
    human = format_qrels({pair: grade for pair, grade in MINI.labels.items() if pair[0] != "1"})
    body = {"human": human, "judge": SECOND, "runs": RUNS, "confidence": 0.995}
    assert "(99.5% interval" in post(client, "corrected", body)["differences"][0]["statement"]


def collection(queries: int, seed: int = 0) -> tuple[str, str, dict[str, float]]:
    """Labels of a judge who is right three times of four, runs of two systems, and the true scores."""
    draw = np.random.default_rng(seed)
    labels = {(f"q{q}", f"d{d}"): int(draw.integers(0, 4)) for q in range(queries) for d in range(12)}
    runs = [
        f"{q} Q0 {d} 0 {grade * lift + float(draw.normal()):.4f} {name}\n"
        for name, lift in (("good", 1.2), ("bad", 0.4))
        for (q, d), grade in labels.items()
    ]
    return format_qrels(labels), "".join(runs), system_scores(parse_runs("".join(runs)), labels)


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


def test_rankings_come_with_kappa_shifts_per_system_and_family_and_ranks_that_tied_ones_share(client):
    turned = "".join(f"{q} Q0 {p} 0 {3 - grade} turned\n" for (q, p), grade in MINI.labels.items())
    body = {"reference": FIRST, "judge": SECOND, "runs": TWO + turned + IDEAL}
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
    first = {"a": 2, "b": 0, "c": 2}
    lines = {tag: f"1 Q0 m01-1 0 {score} {tag}\n1 Q0 m01-4 0 1 {tag}\n" for tag, score in first.items()}
    for order in ("abc", "cba"):
        runs = "".join(lines[tag] for tag in order)
        body = {"reference": FIRST, "judge": "1 0 m01-1 1\n1 0 m01-4 1\n", "runs": runs}
        shifts = {row["system"]: row["shift"] for row in post(client, "rankings", body)["systems"]}
        assert shifts == {"a": -0.5, "b": 1.0, "c": -0.5}
    runs = "1 Q0 m01-1 0 2 ours\n1 Q0 m01-4 0 1 ours\n1 Q0 m01-1 0 1 theirs\n1 Q0 m01-4 0 2 theirs\n"
    ranked = {"reference": FIRST, "judge": "1 0 m01-1 0\n1 0 m01-4 3\n", "runs": runs, "families": {"theirs": "llm"}}
    found = post(client, "rankings", ranked)
    (family,) = found["families"]
    assert (family["family"], family["systems"], family["shift"]) == ("llm", 1, 1.0)
    assert [row["family"] for row in found["systems"]] == [None, "llm"]
    assert found["systems"][0]["reference"] == pytest.approx(1 / 24, abs=0.03), "it lacks 23 of 24 queries"
    assert found["self_preference"] == pytest.approx(2.0)


@pytest.mark.parametrize("measure", ["P_5", "P_10"])
def test_systems_whose_queries_add_up_to_as_much_are_tied(measure):
    """In floats 0.2 + 0.4 is more than 0.6 + 0, which parted systems that find as many passages."""
    labels = {(q, f"d{n}"): 1 for q in ("1", "2") for n in range(3)}

    def run(*found: int) -> dict[str, dict[str, float]]:
        others = {f"x{n}": 1.0 for n in range(5)}
        return {q: others | {f"d{n}": 2.0 for n in range(count)} for q, count in zip("12", found, strict=True)}

    scores = system_scores({"a": run(1, 2), "b": run(3, 0), "c": run(2, 1), "d": run(0, 0)}, labels, measure=measure)
    assert scores["a"] == scores["b"] == scores["c"] > scores["d"]
    found = compare(scores, {"a": 1.0, "b": 1.0, "c": 1.0, "d": 0.0})
    assert (found.tau_b, found.rho) == (pytest.approx(1), pytest.approx(1))


TEXTS = dict.fromkeys(("documents", "topics"), ".I 1\n.W\na b\n")


@pytest.mark.parametrize(("path", "body", "status", "told"), [
    ("significance", {"labels": "1 0 a 1", "runs": "1 Q0 a 1 1 x"}, 422, "1 systems"),
    ("significance", {"labels": "1 0 a 1", "runs": RUNS, "measure": "bpref"}, 422, "no measure"),
    ("significance", {"labels": "1 0 a 1", "runs": RUNS, "baseline": "no"}, 422, "no run"),
    ("corrected", {"human": "1 0 a 1\n2 0 a 1", "judge": "1 0 a 1", "runs": RUNS}, 422, "no labels of the query 2"),
    ("corrected", {"human": "1 0 a 1", "judge": "1 0 a 1", "runs": RUNS}, 422, "3 are the least"),
    ("budget", {"human": "1 0 a 1", "judge": "1 0 a 1", "runs": RUNS, "half_width": 0}, 422, "half_width"),
    ("corrected", {"human": "", "judge": "", "runs": RUNS, "confidence": 1 - 2**-53}, 422, "0.9999"),
    ("collection", {**TEXTS, "relevance": "1 0 1 99999"}, 400, "The grade 99999"),
    ("collection", {**TEXTS, "relevance": "1 1 2", "grades": {2: -1e4}}, 400, "-1000"),
    ("support", {"query": "q", "answer": " ", "passages": {"a": "x"}, "how": "similarity"}, 422, "no sentence"),
    ("preferences", {}, 422, "nothing to compare"),
    ("preferences", {"comparisons": [PAIR], "template": "direct"}, 422, "is for"),
    ("collection", {"documents": "x", "topics": "y", "relevance": ""}, 400, "outside a record"),
    ("rankings", {"reference": "1 0 a 1", "judge": "", "runs": "1 Q0 a 1 x t"}, 400, "not a number"),
    ("rankings", {"reference": "", "judge": "1 0 a 1", "runs": RUNS}, 422, "reference holds no label"),
    ("leaderboard", {"reference": "", "judges": [{"judge": "a", "labels": "1 0 a 1"}]}, 422, "holds no label"),
    ("rankings", {"reference": "Q1 0 a 1", "judge": "", "runs": RUNS}, 422, "has no labelled query: it has 1"),
    ("significance", {"labels": "Q1 0 a 1\nQ2 0 a 1", "runs": RUNS}, 422, "Q1 is one"),
    ("rankings", {"reference": FIRST, "judge": "", "runs": RUNS, "families": {"b": "llm"}}, 422, "no run 'b'"),
    ("rankings", {"reference": "1 0 a 1", "judge": SIGNAL, "runs": RUNS}, 422, "judge holds signals (1 pairs)"),
    ("significance", {"labels": SIGNAL, "runs": RUNS}, 422, "labels holds signals (1 pairs)"),
    ("corrected", {"human": "1 0 a 1", "judge": SIGNAL, "runs": RUNS}, 422, "judge holds signals (1 pairs)"),
])  # fmt: skip
def test_bad_input_is_a_problem_with_a_reason(client, path, body, status, told):
    answer = client.post(f"/v1/judge/{path}", json=body)
    assert answer.status_code == status, answer.text
    assert told in answer.text


def _board_body(**more: Any) -> dict[str, Any]:
    judges = [
        {"judge": "turned", "labels": format_qrels({pair: 3 - grade for pair, grade in MINI.labels.items()})},
        {"judge": "second pass", "labels": SECOND, "template": "by hand"},
        {"judge": "one grade", "labels": format_qrels(dict.fromkeys(MINI.labels, 1))},
        {"judge": "one query", "labels": "1 0 m01-1 3\n1 0 m01-2 0\n"},
        {"judge": "no cuts", "labels": SIGNAL},
    ]
    return {"reference": FIRST, "judges": judges, "runs": TWO + IDEAL, "draws": 200, **more}


def test_the_table_has_kappa_with_its_interval_tau_cost_time_and_invalid_answers_best_first(client):
    found = client.post("/v1/judge/leaderboard", json=_board_body()).json()
    assert [row["judge"] for row in found["rows"]] == ["second pass", "one grade", "turned"]
    for row in found["rows"]:
        low, high = row["kappa_interval"]
        assert low - 1e-9 <= row["kappa"] <= high + 1e-9
        assert "tau_b" in row
    assert (found["rows"][0]["tau_b"], found["rows"][0]["template"]) == (pytest.approx(1.0), "by hand")
    left_out = [(row["judge"], "no grade:" in row["reason"]) for row in found["left_out"]]
    assert left_out == [("one query", False), ("no cuts", True)]
    assert (found["queries"], found["pairs"], found["systems"]) == (24, 192, 3)
    by_error = client.post("/v1/judge/leaderboard", json=_board_body(sort="mae")).json()
    assert by_error["rows"][0]["judge"] == "second pass"
    rows = [
        f'{{"qid": "{q}", "docid": "{p}", "grade": {"null" if n % 4 == 0 else g}, "valid": {str(n % 4 != 0).lower()},'
        f' "tokens": 10, "cost": 0.5, "latency_ms": 100}}'
        for n, ((q, p), g) in enumerate(MINI.labels.items())
    ]
    judges = [{"judge": "lines", "labels": "\n".join(rows)}]
    (row,) = client.post("/v1/judge/leaderboard", json=_board_body(judges=judges)).json()["rows"]
    assert (row["invalid_share"], row["tokens"], row["cost"]) == (0.25, 1920, 96.0)
    assert (row["seconds"], row["pairs"]) == (pytest.approx(19.2), 144)


def test_a_table_is_kept_by_name_and_sorted_anew_with_rows_without_a_value_last(client, released):
    made = client.post("/v1/judge/leaderboard", json=_board_body(name="passes")).json()
    assert (made["version"], client.get("/v1/judge/leaderboard?name=passes").json()["rows"]) == (1, made["rows"])
    again = client.get("/v1/judge/leaderboard?name=passes@1&sort=judge").json()
    assert [row["judge"] for row in again["rows"]] == ["one grade", "second pass", "turned"]
    for query, status in (("name=nope", 404), ("sort=beauty", 422)):
        assert client.get(f"/v1/judge/leaderboard?{query}").status_code == status
    for bad in ({"name": "mini"}, {"measure": "bpref"}):
        assert client.post("/v1/judge/leaderboard", json=_board_body(**bad)).status_code == 422
    reference = released("Olz-gpt4o")
    entries = [LeaderboardEntry(judge=n, labels=LabelSet(released(n))) for n in ("willia-umbrela1", "RMITIR-GPT4o")]
    found = build_leaderboard(reference, entries, {}, draws=20, sort="cost")
    assert [row.cost for row in found.rows] == [None, None]
    assert found.kappa_with_tau is None
