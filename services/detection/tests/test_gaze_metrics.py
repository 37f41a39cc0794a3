"""Measures of scanpaths: equal to the published ones, and 1 for equal paths."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.detection.metrics import behaviour, behaviour_delta, multimatch, nss, sequence_score, similarity
from services.detection.tests.filling import read

CASES = read("oat_metrics.json")["cases"]

paths = st.lists(st.integers(0, 6), min_size=1, max_size=12)


@pytest.mark.parametrize("case", CASES, ids=range(len(CASES)))
def test_measures_equal_the_published_ones(case):
    assert sequence_score(case["pred"], case["gt"]) == pytest.approx(case["ss"], abs=1e-6)
    assert behaviour(case["pred"], case["target"]) == pytest.approx(case["behavior_pred"], abs=1e-6)
    found = multimatch(*case["ab_xy"], screen=(1680, 1050))
    assert found == pytest.approx(case["multimatch_vec_dir_len_pos_dur"], abs=2e-4)


@given(paths)
def test_equal_paths_score_one_everywhere(path):
    points = [(100.0 * item, 50.0 + item**2) for item in path]
    assert sequence_score(path, path) == 1
    assert multimatch(points, points) == pytest.approx((1, 1, 1, 1, 1))


def test_search_refixation_and_revisit_are_told_apart():
    assert behaviour([3, 3, 5, 3], 3) == (1, 4, 0.5, 0.25, 0.25)


def test_empty_paths_are_alike_and_behave_like_nothing():
    assert sequence_score([], []) == 1
    assert sequence_score([], [1]) == 0
    assert behaviour([], 0) == (0, 0, 0, 0, 0)


def test_the_delta_is_relative_and_skips_what_never_happens():
    true = [(1.0, 4.0, 0.5, 0.5, 0.0)]
    assert behaviour_delta([(0.5, 4.0, 0.5, 0.25, 0.25)], true) == pytest.approx((0.5 + 0 + 0 + 0.5) / 4)


def test_short_paths_are_padded_and_durations_compared():
    assert multimatch([(0, 0)], [(0, 0)]) == pytest.approx((1, 1, 1, 1, 1))
    *_, same = multimatch([(0, 0), (9, 9)], [(0, 0), (9, 9)], durations=([2, 2], [2, 2]))
    *_, half = multimatch([(0, 0), (9, 9)], [(0, 0), (9, 9)], durations=([2, 2], [1, 1]))
    assert (same, half) == (1, 0.5)


def test_saliency_measures():
    assert similarity([0.2, 0.8], 1) == pytest.approx(0.8)
    assert nss([0.0, 0.0, 1.0], 2) == pytest.approx(np.sqrt(2))
    assert nss([0.5, 0.5], 0) == 0
