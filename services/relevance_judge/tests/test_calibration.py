"""Cuts turn signals into grades; evaluation leaves whole queries out."""

import math
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fovea.errors import InvalidOption
from services.relevance_judge.metrics.calibration import fit

QUERIES = [query for query in range(6) for _ in range(8)]
GRADES = [0, 0, 1, 1, 2, 2, 3, 3] * 6


def test_a_signal_that_separates_the_grades_is_cut_perfectly():
    for how in ("quantile", "kappa"):
        found = fit([grade / 10 for grade in GRADES], GRADES, QUERIES, how=how)
        assert [found.grade(grade / 10) for grade in GRADES] == GRADES
        assert found.metrics == pytest.approx({"kappa": 1, "kappa_quadratic": 1, "spearman": 1, "pair_order": 1})
        assert found.warnings == ()


def test_quantile_cuts_give_as_many_of_each_grade_as_the_labels_have():
    signals = np.random.default_rng(1).permutation(len(GRADES)).astype(float)
    found = fit(signals, GRADES, QUERIES)
    assert [sum(found.grade(s) == grade for s in signals) for grade in range(4)] == [12] * 4


def test_a_signal_of_noise_has_no_agreement_when_queries_are_left_out():
    found = fit(np.random.default_rng(3).normal(size=len(GRADES)), GRADES, QUERIES, how="kappa")
    assert abs(found.metrics["kappa"] or 0) < 0.3
    assert 0.3 < (found.metrics["pair_order"] or 0) < 0.7


@given(st.lists(st.tuples(st.floats(-50, 0), st.integers(0, 3)), min_size=1, max_size=30))
def test_cuts_ascend_and_grades_rise_with_the_signal(pairs):
    signals, grades = zip(*pairs, strict=True)
    for how in ("quantile", "kappa"):
        found = fit(signals, grades, [0] * len(pairs), how=how)
        assert list(found.cuts) == sorted(found.cuts)
        graded = [found.grade(s) for s in sorted(signals)]
        assert graded == sorted(graded)


def test_few_pairs_and_few_queries_are_a_warning_in_the_resource():
    found = fit([1.0, 2.0], [0, 3], ["a", "a"])
    assert len(found.warnings) == 2
    assert found.metrics["kappa"] is None


def test_a_signal_that_is_not_finite_has_no_grade():
    found = fit(GRADES, GRADES, QUERIES)
    for signal in (math.nan, math.inf, -math.inf):
        with pytest.raises(InvalidOption):
            found.grade(signal)


@pytest.mark.parametrize(
    ("signals", "grades", "queries"),
    [
        ([], [], []), ([1.0], [0, 1], ["a"]), ([math.nan], [0], ["a"]), ([1.0], [4], ["a"]),
        *(([signal, 0.1], [1, 0], ["1", "2"]) for signal in (1e308, -1e101)),
        *(([0.5, 0.1], [grade, 0], ["1", "2"]) for grade in (2**70, -(2**70))),
    ],
)  # fmt: skip
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
