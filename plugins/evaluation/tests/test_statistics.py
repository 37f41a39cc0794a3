"""Significance, prediction-powered inference and label budgets, against SciPy, statsmodels and ppi-python."""

import tracemalloc

import numpy as np
import pytest
from scipy import stats

from fovea.errors import InvalidOption
from fovea_evaluation.metrics import significance
from fovea_evaluation.metrics.corrected import correct_mean, human_mean, plan_labels, tune_weight
from fovea_evaluation.metrics.significance import (
    compare_systems,
    correct_p_values,
    mean_interval,
    permutation_p,
    split_draws,
    tabulate_scores,
)

DRAW = np.random.default_rng(5)


def pilot(n: int, noise: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(seed)
    human = draw.normal(2, 1, n)
    return human, human + 0.5 + noise * draw.normal(size=n)


def test_permutation_is_scipys_and_sampled_near_the_exact_one_and_never_zero(monkeypatch):
    gaps = np.asarray([0.3, -0.1, 0.2, 0.25, 0.0, 0.4, -0.05, 0.31])
    oracle = stats.permutation_test((gaps,), np.mean, permutation_type="samples", n_resamples=np.inf)
    assert permutation_p(gaps) == pytest.approx(oracle.pvalue)
    gaps = np.random.default_rng(1).normal(0.25, 1, 13)
    exact = permutation_p(gaps)
    monkeypatch.setattr(significance, "EXACT_QUERIES", 5)
    assert permutation_p(gaps, draws=20_000) == pytest.approx(exact, abs=0.01)
    assert permutation_p(np.ones(40), draws=1000) == pytest.approx(1 / 1001)


@pytest.mark.parametrize(("ours", "theirs"), [("bonferroni", "bonferroni"), ("holm", "holm"), ("fdr", "fdr_bh")])
def test_corrections_are_those_of_statsmodels(ours, theirs):
    multitest = pytest.importorskip("statsmodels.stats.multitest", reason="needs statsmodels (comes with ppi-python)")
    for p in ([0.01, 0.02, 0.2, 0.04], [0.5, 0.5, 0.001], [0.03], DRAW.random(20).tolist()):
        assert correct_p_values(p, ours) == pytest.approx(multitest.multipletests(p, method=theirs)[1])


def test_many_equal_systems_yield_few_findings_only_with_a_correction():
    def count_findings(correction: significance.Correction) -> int:
        found = 0
        for seed in range(12):
            scores = np.random.default_rng(seed).normal(size=(8, 20))
            tests = compare_systems(list("abcdefgh"), scores, correction=correction, draws=300, seed=seed)
            found += any(test.p_corrected <= 0.05 for test in tests)
        return found

    assert count_findings("none") >= 5
    assert count_findings("max-t") <= 2


def test_systems_are_compared_better_one_first_and_against_a_baseline():
    scores = np.asarray([[0.1, 0.2, 0.3, 0.1], [0.5, 0.6, 0.7, 0.2], [0.5, 0.6, 0.7, 0.1]])
    tests = compare_systems(["low", "high", "mid"], scores, draws=200)
    assert [(test.first, test.second) for test in tests] == [("high", "mid"), ("high", "low"), ("mid", "low")]
    assert (tests[0].wins, tests[0].losses, tests[0].ties) == (1, 0, 3)
    tests = compare_systems(["low", "high", "mid"], scores, baseline="mid", draws=200)
    assert [(test.first, test.second) for test in tests] == [("high", "mid"), ("low", "mid")]
    assert tests[1].difference < 0 < tests[0].difference


def test_scores_per_query_are_those_of_ir_measures():
    ir_measures = pytest.importorskip("ir_measures", reason="pip install ir-measures")
    draw = np.random.default_rng(3)
    qrels = {(f"q{q}", f"d{d}"): int(draw.integers(0, 4)) for q in range(6) for d in range(20)}
    runs = {name: {f"q{q}": {f"d{d}": float(draw.random()) for d in range(20)} for q in range(6)} for name in "ab"}
    graded = [ir_measures.Qrel(q, d, grade) for (q, d), grade in qrels.items()]
    for ours, theirs in (("ndcg_cut_5", "nDCG@5"), ("map", "AP(rel=2)"), ("P_5", "P(rel=2)@5")):
        names, queries, scores = tabulate_scores(runs, qrels, measure=ours, relevance_level=2)
        for name, row in zip(names, scores, strict=True):
            found = ir_measures.iter_calc([ir_measures.parse_measure(theirs)], graded, runs[name])
            oracle = {one.query_id: one.value for one in found}
            assert row == pytest.approx([oracle[query] for query in queries]), (ours, name)


@pytest.mark.parametrize(("noise", "rest"), [(0.3, 500), (1.0, 80), (20.0, 300)])
def test_corrected_means_are_those_of_ppi_python(noise, rest):
    ppi_py = pytest.importorskip("ppi_py", reason="pip install ppi-python")
    human, judge = pilot(60, noise, 1)
    _, unlabelled = pilot(rest, noise, 2)
    for weight in (None, 1.0, 0.4):
        found = correct_mean(human, judge, unlabelled, weight=weight, small_sample=False)
        low, high = ppi_py.ppi_mean_ci(human, judge, unlabelled, alpha=0.05, lam=weight)
        assert found.interval == pytest.approx((float(low[0]), float(high[0])), abs=1e-9)


def test_intervals_cover_the_truth_as_often_as_they_say():
    hits = 0
    for seed in range(400):
        human, judge = pilot(20, 1.0, seed)
        _, unlabelled = pilot(100, 1.0, 10_000 + seed)
        low, high = correct_mean(human, judge, unlabelled).interval
        hits += low <= 2 <= high
    assert 0.92 <= hits / 400 <= 0.985


def test_a_judge_that_guesses_gets_little_weight_and_costs_little():
    human, _ = pilot(100, 1, 1)
    draw = np.random.default_rng(9)
    found = correct_mean(human, draw.normal(size=100), draw.normal(size=500))
    assert found.weight < 0.25
    width, alone = (one.interval[1] - one.interval[0] for one in (found, human_mean(human)))
    assert width <= alone * 1.01
    assert tune_weight(human, np.ones(100), np.ones(500)) == 0


def test_the_planned_number_of_labels_gives_the_wished_width():
    human, judge = pilot(400, 0.5, 1)
    found = plan_labels(human, judge, total=5000, half_width=0.08)
    assert found.with_judge is not None
    assert found.without_judge is not None
    assert found.with_judge < found.without_judge
    widths = []
    for seed in range(20):
        y, f = pilot(found.with_judge, 0.5, 50 + seed)
        _, rest = pilot(5000 - found.with_judge, 0.5, 500 + seed)
        low, high = correct_mean(y, f, rest).interval
        widths.append((high - low) / 2)
    assert np.median(widths) == pytest.approx(0.08, rel=0.1)
    assert [n for n, _, _ in found.curve] == sorted(n for n, _, _ in found.curve)


def test_a_judge_whose_scores_spread_less_is_planned_with_the_weight_that_it_gets():
    human = np.random.default_rng(0).normal(0, 1, 4000)
    judge = 0.4 * human + np.random.default_rng(1).normal(0, 0.02, 4000)
    found = plan_labels(human[:400], judge[:400], total=4000, half_width=0.04)
    assert found.with_judge is not None
    low, high = correct_mean(human[: found.with_judge], judge[: found.with_judge], judge[found.with_judge :]).interval
    assert (high - low) / 2 == pytest.approx(0.04, rel=0.1)


def test_no_number_of_labels_is_enough_where_the_wish_is_too_narrow_and_too_few_are_refused():
    human, judge = pilot(30, 0.5, 1)
    found = plan_labels(human, judge, total=60, half_width=0.01)
    assert (found.with_judge, found.without_judge) == (None, None)
    with pytest.raises(InvalidOption, match="in the pilot"):
        plan_labels(human, judge, total=10, half_width=0.1)
    with pytest.raises(InvalidOption, match="3 are the least"):
        correct_mean([1.0, 2.0], [1.0, 2.0], [1.0])


def test_all_signs_are_tried_up_to_fourteen_queries():
    rounded = ([0.2, 0.4, 0.1, -0.3], 10 / 16)  # two pairs of sums are equal but for rounding
    ones = (np.ones(14), 2 / 2**14)
    for gaps, p in (([1, 1, 1], 2 / 8), ([3, 1, 1], 2 / 8), ([1, -1], 1.0), rounded, ([2, 1, -0.5], 4 / 8), ones):
        assert permutation_p(gaps) == p, gaps
    assert (permutation_p(np.ones(15), draws=9), permutation_p(np.ones(40))) == (1 / 10, 1 / 10_001)
    gaps = np.random.default_rng(0).normal(0.2, 1, 30)
    assert permutation_p(gaps) == permutation_p(gaps, draws=10_000, seed=0) != permutation_p(gaps, seed=1)
    assert permutation_p(gaps, draws=2500) * 2501 == pytest.approx(round(permutation_p(gaps, draws=2500) * 2501))


@pytest.mark.parametrize("rule", [permutation_p, mean_interval])
def test_many_queries_do_not_fill_the_memory(rule):
    gaps = np.random.default_rng(0).normal(size=200_000)
    tracemalloc.start()
    rule(gaps, draws=200)
    assert tracemalloc.get_traced_memory()[1] < 200e6
    tracemalloc.stop()


def test_corrected_p_values_stay_below_one_and_in_order():
    assert correct_p_values([0.5, 0.1, 0.4], "bonferroni") == pytest.approx([1.0, 0.3, 1.0])
    assert correct_p_values([0.02, 0.01, 0.9], "holm") == pytest.approx([0.04, 0.03, 0.9])
    assert correct_p_values([0.04, 0.03, 0.9], "fdr") == pytest.approx([0.06, 0.06, 0.9])
    assert correct_p_values([0.04, 0.03], "none") == [0.04, 0.03]


def test_a_comparison_is_of_the_paired_differences():
    draw = np.random.default_rng(8)
    scores = np.asarray([draw.normal(shift, 0.4, 20) for shift in (0.0, 0.1, 0.3)])
    scores[1, :2] = scores[2, :2]
    names, facts = ["a", "b", "c"], {"draws": 700, "seed": 4}
    tests = compare_systems(names, scores, correction="bonferroni", confidence=0.8, **facts)
    for test in tests:
        gap = scores[names.index(test.first)] - scores[names.index(test.second)]
        assert test.difference == pytest.approx(gap.mean())
        assert (test.interval, test.p) == (mean_interval(gap, confidence=0.8, **facts), permutation_p(gap, **facts))
        assert test.p_corrected == pytest.approx(min(3 * test.p, 1.0))
        assert (test.wins, test.losses, test.ties) == ((gap > 0).sum(), (gap < 0).sum(), (gap == 0).sum())
    assert {test.ties for test in tests} == {0, 2}
    gaps = [scores[names.index(test.first)] - scores[names.index(test.second)] for test in tests]
    usual = compare_systems(names, scores)
    assert [test.p_corrected for test in usual] == correct_p_values([permutation_p(gap) for gap in gaps], "holm")
    assert [test.interval for test in usual] == [mean_interval(gap) for gap in gaps]


def test_the_largest_difference_of_shuffled_systems_corrects_every_pair():
    apart = np.asarray([[0.0] * 12, [0.0] * 12, [1.0] * 12])
    for scores in (apart, apart + 100 * np.arange(12)):  # however much queries differ: nothing goes from one to another
        tests = compare_systems(["a", "b", "c"], scores, correction="max-t", draws=99)
        assert [test.p_corrected for test in tests] == [0.01, 0.01, 1.0]
    close = np.random.default_rng(0).normal(size=(3, 12))
    ours, other = (
        [test.p_corrected for test in compare_systems(["a", "b", "c"], close, correction="max-t", draws=99, seed=seed)]
        for seed in (0, 1)
    )
    again = compare_systems(["a", "b", "c"], close, correction="max-t", draws=99)
    assert [test.p_corrected for test in again] == ours != other
    assert all(round(p * 100) == pytest.approx(p * 100) for p in ours)


def test_a_query_that_a_run_lacks_scores_nothing():
    qrels = {("q1", "d1"): 1, ("q1", "d2"): 0, ("q2", "d1"): 2}
    runs = {"whole": {"q1": {"d1": 2.0, "d2": 1.0}, "q2": {"d1": 1.0}}, "part": {"q1": {"d1": 1.0, "d2": 2.0}}}
    names, queries, scores = tabulate_scores(runs, qrels, measure="P_1")
    assert (names, queries, scores.tolist()) == (["whole", "part"], ["q1", "q2"], [[1.0, 1.0], [0.0, 0.0]])
    assert tabulate_scores(runs, qrels, measure="P_1", relevance_level=2)[2].tolist() == [[0.0, 1.0], [0.0, 0.0]]
    assert tabulate_scores({}, qrels, measure="P_1")[2].shape == (0, 2)


def test_the_interval_of_a_mean_is_near_scipys_bootstrap():
    x = np.random.default_rng(2).gamma(2, 1, 60)
    oracle = stats.bootstrap((x,), np.mean, method="percentile", n_resamples=10_000, rng=1).confidence_interval
    assert mean_interval(x) == pytest.approx((oracle.low, oracle.high), abs=0.03)


def test_intervals_are_of_as_many_samples_as_are_asked_for():
    assert mean_interval([2.0, 2.0, 2.0]) == (2.0, 2.0)
    x = np.random.default_rng(2).gamma(2, 1, 25)
    assert mean_interval(x) == mean_interval(x, confidence=0.95, draws=10_000, seed=0) != mean_interval(x, seed=1)
    source = np.random.default_rng(6)
    expected = np.percentile(x[source.integers(0, 25, (2500, 25))].mean(1), (10, 90))
    assert mean_interval(x, confidence=0.8, draws=2500, seed=6) == pytest.approx(tuple(expected))
    assert [split_draws(5, count) for count in (0, 1_500_000, 2_000_000, 5_000_000)] == [
        [5],
        [2, 2, 1],
        [2, 2, 1],
        [1] * 5,
    ]
    assert split_draws(4_000_001, 1) == [4_000_000, 1]
