"""Calibrations and weights of signals, reports of trust, and bias of judges."""

import math
import time
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fovea.errors import InvalidOption
from services.relevance_judge.metrics.baselines import overlap
from services.relevance_judge.metrics.bias import invalid_share, measure_bias
from services.relevance_judge.metrics.calibration import Calibration, fit
from services.relevance_judge.metrics.pair_order import kendall_tau_b, pair_order
from services.relevance_judge.metrics.signal_weights import combine_signals, fit_order, fit_signal_weights
from services.relevance_judge.metrics.trust import build_trust_report
from services.relevance_judge.storage.mini_collection import load_mini_collection

QUERIES = [query for query in range(6) for _ in range(8)]
GRADES = [0, 0, 1, 1, 2, 2, 3, 3] * 6


def test_cuts_separate_grades_or_give_as_many_of_each():
    for how in ("quantile", "kappa"):
        found = fit([grade / 10 for grade in GRADES], GRADES, QUERIES, how=how)
        assert [found.grade(grade / 10) for grade in GRADES] == GRADES
        assert found.metrics == pytest.approx({"kappa": 1, "kappa_quadratic": 1, "spearman": 1, "pair_order": 1})
        assert found.warnings == ()
    signals = np.random.default_rng(1).permutation(len(GRADES)).astype(float)
    found = fit(signals, GRADES, QUERIES)
    assert [sum(found.grade(s) == grade for s in signals) for grade in range(4)] == [12] * 4


@given(st.lists(st.tuples(st.floats(-50, 0), st.integers(0, 3)), min_size=1, max_size=30))
def test_cuts_ascend_and_grades_rise_with_the_signal(pairs):
    signals, grades = zip(*pairs, strict=True)
    for how in ("quantile", "kappa"):
        found = fit(signals, grades, [0] * len(pairs), how=how)
        assert list(found.cuts) == sorted(found.cuts)
        graded = [found.grade(s) for s in sorted(signals)]
        assert graded == sorted(graded)


def test_few_pairs_are_a_warning_and_a_signal_that_is_not_finite_or_has_no_spread_has_no_grade():
    found = fit([1.0, 2.0], [0, 3], ["a", "a"])
    assert len(found.warnings) == 2
    assert found.metrics["kappa"] is None
    found = fit(GRADES, GRADES, QUERIES)
    for signal in (math.nan, math.inf, -math.inf):
        with pytest.raises(InvalidOption):
            found.grade(signal)
    x, grades, queries = [0.7] * 7, [0, 1, 2, 3, 0, 1, 2], list("aaaabbb")
    assert np.std(x) > 0, "the mean is 0.7000000000000001"
    with pytest.raises(InvalidOption, match="spread"):
        fit(x, grades, queries).standardise(0.5)
    cuts = Calibration(cuts=(0, 1, 2), how="quantile", pairs=1, queries=1)
    with pytest.raises(InvalidOption, match="mean and spread"):
        cuts.standardise(1.0)
    assert cuts.model_copy(update={"mean": 1.0, "spread": 2.0}).standardise(5.0) == 2.0
    with pytest.raises(InvalidOption, match="same for all"):
        fit_signal_weights(np.c_[x, np.arange(7.0)], grades, queries)


@pytest.mark.parametrize(("signals", "grades", "queries"), [
    ([], [], []), ([1.0], [0, 1], ["a"]), ([math.nan], [0], ["a"]), ([1.0], [4], ["a"]),
    *(([signal, 0.1], [1, 0], ["1", "2"]) for signal in (1e308, -1e101)),
    *(([0.5, 0.1], [grade, 0], ["1", "2"]) for grade in (2**70, -(2**70))),
])  # fmt: skip
def test_broken_training_data_is_refused(signals, grades, queries):
    with pytest.raises(InvalidOption):
        fit(signals, grades, queries)


def test_many_pairs_of_one_query_and_a_long_name_take_little_memory():
    count = 50_000
    signals = np.random.default_rng(0).random(count)
    queries = ["x" * 1_000_000, *["y"] * (count - 1)]
    tracemalloc.start()
    found = fit(signals, [place % 4 for place in range(count)], queries)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found.metrics["pair_order"] == pytest.approx(0.5, abs=0.01)
    assert peak < 100e6  # a table of all pairs has 2.5 billion entries
    begun = time.process_time()
    fit(signals[:300], [place % 4 for place in range(300)], [*map(str, range(300))], how="kappa")
    assert time.process_time() - begun < 6  # 45,760 triples of cuts for each query
    begun = time.process_time()
    found = fit(signals, [place % 4 for place in range(count)], [*map(str, range(count))])
    assert time.process_time() - begun < 20  # not a fit for each of 50,000 queries
    assert found.metrics["kappa"] == pytest.approx(0.0, abs=0.02)


def collection(queries: int = 40) -> dict[tuple[str, str], int]:
    draw = np.random.default_rng(0)
    return {(str(q), f"d{p}"): int(draw.integers(0, 4)) for q in range(queries) for p in range(8)}


def noisy(labels: dict[tuple[str, str], int], noise: float, seed: int) -> dict[tuple[str, str], float]:
    draw = np.random.default_rng(seed)
    return {pair: grade + noise * float(draw.normal()) for pair, grade in labels.items()}


def test_a_good_judge_is_better_than_the_baselines_one_that_guesses_is_not_and_the_report_says_so():
    labels = collection()
    bad = {"bm25": noisy(labels, 4, 2), "embedding": noisy(labels, 3, 3)}
    found = build_trust_report("mine", noisy(labels, 0.5, 1), labels, bad)
    assert found.is_better
    assert found.statement.startswith("The judge is better than every baseline")
    assert [row.name for row in found.baselines] == ["bm25", "embedding"]
    low, high = found.judge.pair_order_interval or (1, 0)
    assert low < (found.judge.pair_order or 0) < high
    assert (found.judge.kappa or 0) > (found.baselines[0].kappa or 0)
    found = build_trust_report("mine", noisy(dict.fromkeys(labels, 0), 1, 5), labels, {"bm25": noisy(labels, 2, 2)})
    assert not found.is_better
    assert "no better than chance" in found.statement
    reversed_ = build_trust_report("mine", {p: -float(g) for p, g in labels.items()}, labels, {})
    assert "worse than chance" in reversed_.statement
    few = collection(queries=3)
    assert "says nothing" in build_trust_report("mine", noisy(few, 0.1, 1), few, {}).statement
    one_good = {"bm25": noisy(labels, 5, 2), "embedding": noisy(labels, 1, 3)}
    found = build_trust_report("mine", noisy(labels, 1, 5), labels, one_good)
    assert not found.is_better
    assert "no better than embedding" in found.statement
    assert "bm25" not in found.statement


def test_its_figures_are_those_of_the_definitions_though_it_has_the_name_of_a_baseline():
    labels = collection(queries=12)
    signals = noisy(labels, 1.5, 4)
    found = build_trust_report("mine", signals, labels, {"same": signals}, draws=200)
    by_query = [[pair for pair in labels if pair[0] == str(q)] for q in range(12)]
    taus = [kendall_tau_b([signals[p] for p in group], [labels[p] for p in group]) for group in by_query]
    assert found.judge.tau == pytest.approx(np.mean([tau for tau in taus if tau is not None]))
    queries = [qid for qid, _ in labels]
    assert found.judge.pair_order == pytest.approx(pair_order([*signals.values()], [*labels.values()], queries))
    assert (found.baselines[0].lead, found.baselines[0].lead_interval) == (0.0, (0.0, 0.0))
    labels = collection()
    signals, baselines = noisy(labels, 1.5, 4), {"bm25": noisy(labels, 4, 2)}
    mine, same = (build_trust_report(name, signals, labels, baselines, draws=200) for name in ("mine", "bm25"))
    assert same.judge.model_copy(update={"name": "mine"}) == mine.judge
    assert (same.baselines, same.statement) == (mine.baselines, mine.statement)


def test_pair_order_is_the_share_of_pairs_within_queries_and_of_two_grades_the_area_under_the_curve():
    from sklearn.metrics import roc_auc_score  # here, as each process that collects tests would import all of it

    draw = np.random.default_rng(0)
    y, x = draw.integers(0, 2, 60), draw.integers(0, 9, 60) / 3
    assert pair_order(x, y, ["1"] * 60) == pytest.approx(roc_auc_score(y, x))
    assert pair_order([1, 2, 3, 0, 9], [0, 2, 1, 3, 0], ["1", "1", "1", "2", "2"]) == pytest.approx(2 / 4)
    assert pair_order([1.0, 2.0], [1, 1], ["1", "1"]) is None


def test_weights_go_to_the_judge_that_orders_and_none_to_one_of_the_wrong_way():
    labels = collection(queries=60)
    sides = [[*noisy(labels, noise, seed).values()] for noise, seed in ((2, 1), (2, 2), (50, 3))]
    x, y, q = np.asarray(sides).T, list(labels.values()), [qid for qid, _ in labels]
    found = fit_signal_weights(x, y, q)
    assert sum(found.weights) == pytest.approx(1)
    assert found.weights[2] < 0.2 < min(found.weights[:2])
    assert (found.pair_order or 0) > max(one or 0 for one in found.alone)
    assert (found.pair_order or 0) > (found.equal or 0)
    assert pair_order(combine_signals(x, found), y, q) == pytest.approx(found.pair_order, abs=0.02)
    labels = collection()
    good, bad = noisy(labels, 1, 1), {pair: -grade for pair, grade in noisy(labels, 1, 2).items()}
    x = np.asarray([[good[pair], bad[pair]] for pair in labels])
    assert fit_signal_weights(x, list(labels.values()), [q for q, _ in labels]).weights == (1.0, 0.0)


def test_the_fit_is_scikit_learns_logistic_regression_of_differences():
    from sklearn.linear_model import LogisticRegression

    labels = collection(queries=20)
    x = np.asarray([[noisy(labels, noise, noise)[pair] for noise in (1, 3)] for pair in labels])
    y, q = np.asarray(list(labels.values())), np.asarray([qid for qid, _ in labels])
    rows, shares = [], []
    for name in sorted(set(q)):
        group, grades = x[q == name], y[q == name]
        pairs = [(a, b) for a in range(len(grades)) for b in range(len(grades)) if grades[a] > grades[b]]
        rows += [group[a] - group[b] for a, b in pairs]
        shares += [1 / len(pairs)] * len(pairs)
    both = np.asarray([*rows, *(-np.asarray(rows))])  # each pair in both directions, at half the weight
    oracle = LogisticRegression(C=1.0, fit_intercept=False, tol=1e-10)
    oracle.fit(both, [1] * len(rows) + [0] * len(rows), sample_weight=np.asarray([*shares, *shares]) / 2)
    assert fit_order(x, y, q, 1.0, lowest=None) == pytest.approx(oracle.coef_[0], abs=1e-3)


@pytest.mark.parametrize(("signals", "grades", "told"), [
    ([[1.0, 2.0], [1.0, 3.0]], [0, 1], "same for all"), ([[1.0], [2.0]], [1, 1], "unequal grade"),
    ([[1.0], [math.nan]], [1, 0], "finite"),
])  # fmt: skip
def test_what_cannot_be_weighed_is_refused(signals, grades, told):
    with pytest.raises(InvalidOption, match=told):
        fit_signal_weights(signals, grades, ["a", "a"])


MINI = load_mini_collection()


def test_bias_for_length_and_words_shows_few_pairs_are_no_crash_and_invalid_answers_are_told_per_grade():
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
    assert measure_bias({("1", "a"): 1}, {}, {"1": "q"}, {"a": "p"}).by_length == []
    (only,) = measure_bias({("1", "a"): 1}, {("1", "a"): 9}, {"1": "q"}, {"a": "p"}).by_overlap
    assert (only.bias, only.kappa) == (2.0, 0.0)
    reference = {("1", "a"): 0, ("1", "b"): 0, ("1", "c"): 3}
    assert invalid_share(reference, [("1", "a"), ("9", "z")]) == [0.5, None, None, 0.0]
    outside = {("1", "d"): -2, ("1", "e"): 4}
    assert invalid_share(reference | outside, list(outside)) == [1 / 3, None, None, 0.5]
