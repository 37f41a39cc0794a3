"""Rankings of systems are those of trec_eval, and comparisons of rankings those of SciPy."""

import json
import lzma

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fovea.errors import InvalidOption
from fovea_evaluation.metrics.rankings import compare, evaluate, system_scores, tau_ap
from plugins.evaluation.tests.conftest import GOLDEN
from services.relevance_judge.metrics.pair_order import kendall_tau_b, spearman_rho
from services.relevance_judge.parsing.trec import parse_runs
from services.relevance_judge.tests.conftest import GOLDEN as CORE_GOLDEN


def _same(found: float | None, expected: float | None) -> bool:
    return found is expected is None or (None not in (found, expected) and found == pytest.approx(expected, abs=1e-6))


def test_measures_match_trec_eval_on_ties_float32_and_unjudged(golden):
    for case in golden("trec_measures.json")["cases"]:
        labels = {("q", passage): grade for passage, grade in case["qrels"].items()}
        measures = list(case["expected"])
        found = evaluate({"q": case["run"]}, labels, measures=measures, relevance_level=case["relevance_level"])
        assert found["q"] == pytest.approx(case["expected"], abs=1e-6)


def test_synthetic_systems_are_ranked_as_trec_eval_ranks_them(golden, released):
    told, runs = (
        golden("system_ranking.json"),
        parse_runs(lzma.decompress((GOLDEN / "runs.trec.xz").read_bytes()).decode()),
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


def test_correlations_match_the_oracle_and_are_none_where_undefined():
    vectors = json.loads((CORE_GOLDEN / "agreement_vectors.json").read_text())
    for case in vectors["rank_pairs"]:
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


def test_what_nobody_judged_is_not_relevant_even_where_grade_zero_is():
    run = {"q": {"new": 3.0, "a": 2.0, "other": 1.0}}
    found = evaluate(run, {("q", "a"): 0}, measures=["map", "recall_3", "recip_rank", "P_1"], relevance_level=0)
    assert found == {"q": {"map": 0.5, "recall_3": 1.0, "recip_rank": 0.5, "P_1": 0.0}}


@pytest.mark.parametrize("name", ["bpref", "P_0", "P_²", "P_" + "9" * 5000, "ndcg_cut_x", "map_10", ""])
def test_an_unknown_measure_is_refused(name):
    with pytest.raises(InvalidOption, match="no measure"):
        evaluate({}, {}, measures=[name])
