"""The trust report: what it says of judges whose worth is known, and weights of signals against scikit-learn's."""

from itertools import combinations

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from fovea.errors import InvalidOption
from services.relevance_judge.metrics.pair_order import pair_order
from services.relevance_judge.metrics.rankings import kendall_tau_b
from services.relevance_judge.metrics.signal_weights import combine_signals, fit_order, fit_signal_weights
from services.relevance_judge.metrics.trust import build_trust_report

Pairs = dict[tuple[str, str], float]


def collection(queries: int = 40, depth: int = 8, seed: int = 0) -> dict[tuple[str, str], int]:
    draw = np.random.default_rng(seed)
    return {(str(q), f"d{p}"): int(draw.integers(0, 4)) for q in range(queries) for p in range(depth)}


def noisy(labels: dict[tuple[str, str], int], noise: float, seed: int) -> Pairs:
    draw = np.random.default_rng(seed)
    return {pair: grade + noise * float(draw.normal()) for pair, grade in labels.items()}


def test_a_good_judge_is_better_than_the_baselines_and_the_report_says_so():
    labels = collection()
    found = build_trust_report(
        "mine", noisy(labels, 0.5, 1), labels, {"bm25": noisy(labels, 4, 2), "embedding": noisy(labels, 3, 3)}
    )
    assert found.is_better
    assert found.statement.startswith("The judge is better than every baseline")
    assert [row.name for row in found.baselines] == ["bm25", "embedding"]
    low, high = found.judge.pair_order_interval or (1, 0)
    assert low < (found.judge.pair_order or 0) < high
    assert (found.judge.kappa or 0) > (found.baselines[0].kappa or 0)


def test_a_judge_that_guesses_is_called_no_better_than_chance():
    labels = collection()
    found = build_trust_report("mine", noisy(dict.fromkeys(labels, 0), 1, 5), labels, {"bm25": noisy(labels, 2, 2)})
    assert not found.is_better
    assert "no better than chance" in found.statement
    reversed_ = build_trust_report("mine", {p: -float(g) for p, g in labels.items()}, labels, {})
    assert "worse than chance" in reversed_.statement


def test_a_judge_as_good_as_a_baseline_is_no_better_and_the_baseline_is_named():
    labels = collection()
    found = build_trust_report(
        "mine", noisy(labels, 1, 5), labels, {"bm25": noisy(labels, 5, 2), "embedding": noisy(labels, 1, 3)}
    )
    assert not found.is_better
    assert "no better than embedding" in found.statement
    assert "bm25" not in found.statement


def test_too_small_a_sample_gives_no_verdict():
    labels = collection(queries=3)
    assert "says nothing" in build_trust_report("mine", noisy(labels, 0.1, 1), labels, {}).statement


def test_its_figures_are_those_of_the_definitions():
    labels = collection(queries=12)
    signals = noisy(labels, 1.5, 4)
    found = build_trust_report("mine", signals, labels, {"same": signals}, draws=200)
    by_query = [[pair for pair in labels if pair[0] == str(q)] for q in range(12)]
    taus = [kendall_tau_b([signals[p] for p in group], [labels[p] for p in group]) for group in by_query]
    assert found.judge.tau == pytest.approx(np.mean([tau for tau in taus if tau is not None]))
    right = [
        (signals[a] > signals[b]) == (labels[a] > labels[b])
        for group in by_query
        for a, b in combinations(group, 2)
        if labels[a] != labels[b]
    ]
    assert found.judge.pair_order == pytest.approx(np.mean(right))
    assert (found.baselines[0].lead, found.baselines[0].lead_interval) == (0.0, (0.0, 0.0))


def test_pair_order_of_two_grades_is_the_area_under_the_curve():
    draw = np.random.default_rng(0)
    y, x = draw.integers(0, 2, 60), draw.integers(0, 9, 60) / 3
    assert pair_order(x, y, ["1"] * 60) == pytest.approx(roc_auc_score(y, x))
    assert pair_order([1.0, 2.0], [1, 1], ["1", "1"]) is None


def test_weights_go_to_the_judge_that_orders_and_help_on_queries_left_out():
    labels = collection(queries=60)
    sides = [[*noisy(labels, noise, seed).values()] for noise, seed in ((2, 1), (2, 2), (50, 3))]
    x, y, q = np.asarray(sides).T, list(labels.values()), [qid for qid, _ in labels]
    found = fit_signal_weights(x, y, q)
    assert sum(found.weights) == pytest.approx(1)
    assert found.weights[2] < 0.2 < min(found.weights[:2])
    assert (found.pair_order or 0) > max(one or 0 for one in found.alone)
    assert (found.pair_order or 0) > (found.equal or 0)
    assert pair_order(combine_signals(x, found), y, q) == pytest.approx(found.pair_order, abs=0.02)


def test_a_judge_that_orders_the_wrong_way_gets_no_weight():
    labels = collection()
    good, bad = noisy(labels, 1, 1), {pair: -grade for pair, grade in noisy(labels, 1, 2).items()}
    x = np.asarray([[good[pair], bad[pair]] for pair in labels])
    assert fit_signal_weights(x, list(labels.values()), [q for q, _ in labels]).weights == (1.0, 0.0)


def test_the_fit_is_scikit_learns_logistic_regression_of_differences():
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


def test_what_cannot_be_weighed_is_refused():
    with pytest.raises(InvalidOption, match="same for all"):
        fit_signal_weights([[1.0, 2.0], [1.0, 3.0]], [0, 1], ["a", "a"])
    with pytest.raises(InvalidOption, match="unequal grade"):
        fit_signal_weights([[1.0], [2.0]], [1, 1], ["a", "a"])
    with pytest.raises(InvalidOption, match="finite"):
        fit_signal_weights([[1.0], [float("nan")]], [1, 0], ["a", "a"])
