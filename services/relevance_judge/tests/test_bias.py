"""Bias of judges and rankings from their grades."""

import json
import lzma

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fovea.errors import Malformed
from services.relevance_judge.metrics.baselines import overlap
from services.relevance_judge.metrics.bias import invalid_share, measure_bias
from services.relevance_judge.metrics.rankings import (
    compare,
    evaluate,
    kendall_tau_b,
    spearman_rho,
    system_scores,
    tau_ap,
)
from services.relevance_judge.parsing.label_formats import MEDIA_TYPES, format_labels, parse_labels, parse_signals
from services.relevance_judge.parsing.trec import format_qrels, parse_runs
from services.relevance_judge.storage.mini_collection import load_mini_collection
from services.relevance_judge.tests.conftest import serve_judges

MINI = load_mini_collection()


def test_a_judge_that_likes_long_passages_or_counts_words_shows_it():
    lengths = {docid: len(text.split()) for docid, text in MINI.passages.items()}
    middle = sorted(lengths.values())[len(lengths) // 2]
    fond = {(q, d): min(g + (lengths[d] > middle), 3) for (q, d), g in MINI.labels.items()}
    found = measure_bias(MINI.labels, fond, MINI.topics, MINI.passages)
    assert found.pairs == sum(part.pairs for part in found.by_length) == 192
    assert ([part.pairs for part in found.by_length], found.by_length[0].bias) == ([64, 64, 64], 0)
    assert found.by_length[2].bias > 0.5
    assert found.by_length[0].highest <= found.by_length[1].lowest
    shares = {(q, d): overlap(MINI.topics[q], {d: MINI.passages[d]})[d] for q, d in MINI.labels}
    fond = {pair: min(grade + (shares[pair] > 0.5), 3) for pair, grade in MINI.labels.items()}
    thirds = measure_bias(MINI.labels, fond, MINI.topics, MINI.passages).by_overlap
    assert thirds[0].bias == 0
    assert thirds[2].bias > 0.4
    assert thirds[2].lowest >= thirds[0].highest


def test_few_pairs_are_no_crash_and_invalid_answers_are_told_per_grade():
    assert measure_bias({("1", "a"): 1}, {}, {"1": "q"}, {"a": "p"}).by_length == []
    (only,) = measure_bias({("1", "a"): 1}, {("1", "a"): 9}, {"1": "q"}, {"a": "p"}).by_overlap
    assert (only.bias, only.kappa) == (2.0, 0.0)
    reference = {("1", "a"): 0, ("1", "b"): 0, ("1", "c"): 3}
    assert invalid_share(reference, [("1", "a"), ("9", "z")]) == [0.5, None, None, 0.0]


def test_labels_go_out_and_come_in_again_in_both_forms():
    rows = [
        {"qid": "1", "docid": "a", "grade": 2, "valid": True},
        {"qid": "1", "docid": "b", "grade": None, "valid": False},
        {"qid": "1", "docid": "c", "error": "gone"},
    ]
    assert parse_labels(format_labels(rows, "qrels"), "x").labels == {("1", "a"): 2}
    found = parse_labels(format_labels(rows, "jsonl"), "x")
    assert (found.labels, found.invalid) == ({("1", "a"): 2}, [("1", "b")])
    assert format_labels(rows, "csv").splitlines()[0].startswith("qid,docid,grade")
    assert set(MEDIA_TYPES) == {"qrels", "jsonl", "csv"}


@pytest.mark.parametrize(
    "text",
    [
        '{"qid": "1"}', '{"qid": "1", "docid": "a", "grade": 1.5}', "{]", '{"qid": "1", "docid": "a", "grade": true}',
        '{"qid": 1, "docid": "a", "grade": 1}\n{"qid": 1, "docid": "a", "grade": 2}', '{"a": 1}\n[1]',
        '{"qid": 1, "docid": "a", "grade": 1000000000000000000000000000000}',
    ],
)  # fmt: skip
def test_broken_json_lines_are_named_by_their_number(text):
    with pytest.raises(Malformed, match=r"Line [12] of judge"):
        parse_labels(text, "judge")


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999", "9" * 400])
def test_numbers_that_are_none_do_not_count_and_are_no_signal(number):
    row = f'{{"qid": 1, "docid": "a", "grade": 1, "tokens": {number}, "latency_ms": {number}, "cost": {number}}}'
    found = parse_labels(row, "judge")
    assert (found.tokens, found.seconds, found.cost) == (0, 0.0, None)
    with pytest.raises(Malformed, match="not a finite number"):
        parse_signals(row.replace('"tokens"', '"signal"'), "judge")


def test_a_template_that_is_no_text_is_none():
    rows = '{"qid": 1, "docid": "a", "signal": 1, "template": ["x"], "llm": {}}\n' * 2
    assert parse_signals(rows, "judge").template is None


def test_over_http_bias_invalid_shares_and_disagreements_come_with_the_agreement(tmp_path):
    judge = "\n".join(
        json.dumps({"qid": q, "docid": d, "grade": None if d == "m01-1" else 3, "valid": d != "m01-1"})
        for q, d in MINI.labels
    )
    body = {
        "reference": format_qrels(MINI.labels), "judge": judge, "draws": 50,
        "topics": (MINI.folder / "topics.tsv").read_text(), "passages": (MINI.folder / "passages.jsonl").read_text(),
    }  # fmt: skip
    with serve_judges(tmp_path, {}) as c:
        found = c.post("/v1/judge/agreement", json=body).json()
        runs = "1 Q0 m01-1 0 2 ours\n1 Q0 m01-4 0 1 ours\n1 Q0 m01-1 0 1 theirs\n1 Q0 m01-4 0 2 theirs\n"
        liked = "1 0 m01-1 0\n1 0 m01-4 3\n"
        ranked = {"reference": body["reference"], "judge": liked, "runs": runs, "families": {"theirs": "llm"}}
        preference = c.post("/v1/judge/rankings", json=ranked).json()
    assert (found["invalid"], found["pairs"], found["invalid_by_grade"]) == (1, 191, [0, 0, 0, pytest.approx(1 / 48)])
    assert (found["bias_by_text"]["pairs"], {row["reference"] for row in found["disagreements"][:48]}) == (191, {0})
    assert (found["disagreements"][-1]["reference"], preference["self_preference"]) == (2, pytest.approx(2.0))
    (family,) = preference["families"]
    assert (family["family"], family["systems"], family["shift"]) == ("llm", 1, 1.0)
    assert [row["family"] for row in preference["systems"]] == [None, "llm"]


def _same(found: float | None, expected: float | None) -> bool:
    return found is expected is None or (None not in (found, expected) and found == pytest.approx(expected, abs=1e-6))


def test_measures_match_trec_eval_on_ties_float32_and_unjudged(golden):
    for case in golden("trec_measures.json")["cases"]:
        labels = {("q", passage): grade for passage, grade in case["qrels"].items()}
        measures = list(case["expected"])
        found = evaluate({"q": case["run"]}, labels, measures=measures, relevance_level=case["relevance_level"])
        assert found["q"] == pytest.approx(case["expected"], abs=1e-6)


def test_synthetic_systems_are_ranked_as_trec_eval_ranks_them(golden, golden_folder, released):
    told, runs = (
        golden("system_ranking.json"),
        parse_runs(lzma.decompress((golden_folder / "runs.trec.xz").read_bytes()).decode()),
    )
    clamped = {
        name: {pair: min(max(grade, 0), 3) for pair, grade in released(name).items()}
        for name in (told["reference"], *told["judges"])
    }
    truth = {
        measure: system_scores(runs, clamped[told["reference"]], measure=measure, relevance_level=2)
        for measure in ("ndcg_cut_10", "map", "P_10", "recip_rank", "recall_20")
    }
    for tag, row in told["measures_under_reference"].items():
        assert {measure: truth[measure][tag] for measure in row} == pytest.approx(row, abs=1e-6)
    for name, row in told["judges"].items():
        scores = system_scores(runs, clamped[name])
        assert scores == pytest.approx(row["ndcg_cut_10"], abs=1e-6)
        found = compare(truth["ndcg_cut_10"], scores)
        assert (found.tau_b, found.rho) == pytest.approx((row["kendall_tau_b"], row["spearman_rho"]), abs=1e-6)
        by_map = compare(truth["map"], system_scores(runs, clamped[name], measure="map", relevance_level=2))
        assert by_map.tau_b == pytest.approx(row["map_tau_b"], abs=1e-6)


def test_correlations_match_the_oracle_and_are_none_where_undefined(golden):
    for case in golden("agreement_vectors.json")["rank_pairs"]:
        truth, estimate = case["truth"], case["estimate"]
        assert _same(kendall_tau_b(truth, estimate), case["kendall_tau_b"])
        assert _same(spearman_rho(truth, estimate), case["spearman"])
        assert _same(tau_ap(truth, estimate), case["tau_ap"])
    assert compare({"a": 1.0}, {"a": 2.0, "b": 1.0}).tau_b is None


@given(
    st.dictionaries(st.sampled_from("abcdefgh"), st.floats(-5, 5), min_size=1),
    st.dictionaries(st.sampled_from("abcdefgh"), st.integers(0, 3), min_size=1),
)
def test_ndcg_lies_between_zero_and_one(run, grades):
    labels = {("q", passage): grade for passage, grade in grades.items()}
    found = evaluate({"q": run}, labels, measures=["ndcg", "ndcg_cut_3"])["q"]
    assert all(-1e-12 <= value <= 1 + 1e-12 for value in found.values())


@given(st.dictionaries(st.sampled_from("abcdefgh"), st.integers(0, 3), min_size=1))
def test_the_labels_themselves_are_the_ideal_run(grades):
    labels = {("q", passage): grade for passage, grade in grades.items()}
    found = evaluate({"q": {p: float(g) for p, g in grades.items()}}, labels, measures=["ndcg"])["q"]["ndcg"]
    assert found == pytest.approx(1.0 if any(grades.values()) else 0.0)


def test_a_query_without_a_relevant_passage_scores_zero_and_one_without_a_run_does_not_count():
    labels = {("q1", "a"): 0, ("q2", "a"): 3}
    found = evaluate({"q1": {"a": 1.0}}, labels, measures=["ndcg", "map", "recall_5"])
    assert found == {"q1": {"ndcg": 0.0, "map": 0.0, "recall_5": 0.0}}
    assert system_scores({"s": {"q9": {"a": 1.0}}}, labels) == {}


@pytest.mark.parametrize("name", ["bpref", "P_0", "ndcg_cut_x", "map_10", ""])
def test_an_unknown_measure_is_refused(name):
    with pytest.raises(ValueError, match="no measure"):
        evaluate({}, {}, measures=[name])
