"""Scanpaths: the decoding of fixations and the gaze metrics."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fovea_planning.gaze.metrics import behaviour, behaviour_delta, multimatch, nss, sequence_score, similarity
from fovea_planning.gaze.scanpaths import decode_scanpaths
from tests.golden import read_golden

GOLDEN = Path(__file__).parent / "golden"


def chain(fixations: np.ndarray) -> np.ndarray:
    """After t fixations object t is likeliest; after 3 the end (index 5) is."""
    logits = np.zeros((len(fixations), 7))
    logits[:, 5 if fixations.shape[1] >= 3 else fixations.shape[1]] = 9
    logits[:, 6] = 99  # padding must never win
    return logits


def test_the_likeliest_path_ends_where_the_end_is_likeliest_but_not_at_its_first_step():
    (found,) = decode_scanpaths(chain, 1, 10)
    assert found.objects == [0, 1, 2]
    assert found.ended
    assert found.probabilities.shape == (3, 6)
    np.testing.assert_allclose(found.probabilities.sum(1), 1)
    (found,) = decode_scanpaths(lambda fixations: np.eye(7)[[2] * len(fixations)] * 9, 1, 4)
    assert found.objects == [2, 2, 2, 2]
    assert not found.ended
    (found,) = decode_scanpaths(lambda fixations: np.eye(7)[[5] * len(fixations)] * 9, 1, 4)
    assert (len(found.objects), found.probabilities[0, 5]) == (1, 0)


def test_drawn_paths_follow_the_probabilities_and_the_seed():
    def step(fixations: np.ndarray) -> np.ndarray:
        return np.log(np.tile([0.5, 0.3, 0.2, 1e-9, 1e-9, 1e-9, 1], (len(fixations), 1)))

    def draw(seed: int) -> list[list[int]]:
        return [path.objects for path in decode_scanpaths(step, 2000, 1, draw=np.random.default_rng(seed))]

    found = draw(1)
    assert found == draw(1)
    assert found != draw(2)
    shares = np.bincount([path[0] for path in found], minlength=3) / 2000
    assert shares == pytest.approx([0.5, 0.3, 0.2], abs=0.05)


def test_paths_of_different_lengths_are_kept_apart():
    def step(fixations: np.ndarray) -> np.ndarray:
        logits = np.zeros((2, 7))
        logits[0, 5 if fixations.shape[1] == 1 else 1] = 9
        logits[1, 5 if fixations.shape[1] == 3 else 2] = 9
        return logits

    short, long = decode_scanpaths(step, 2, 6)
    assert (short.objects, long.objects) == ([1], [2, 2, 2])


CASES = read_golden(GOLDEN / "oat_metrics.json")["cases"]

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


def test_empty_and_short_paths_are_alike_durations_and_deltas_compared_and_saliency_measured():
    assert sequence_score([], []) == 1
    assert sequence_score([], [1]) == 0
    assert behaviour([], 0) == (0, 0, 0, 0, 0)
    assert multimatch([(0, 0)], [(0, 0)]) == pytest.approx((1, 1, 1, 1, 1))
    *_, same = multimatch([(0, 0), (9, 9)], [(0, 0), (9, 9)], durations=([2, 2], [2, 2]))
    *_, half = multimatch([(0, 0), (9, 9)], [(0, 0), (9, 9)], durations=([2, 2], [1, 1]))
    assert (same, half) == (1, 0.5)
    true = [(1.0, 4.0, 0.5, 0.5, 0.0)]
    assert behaviour_delta([(0.5, 4.0, 0.5, 0.25, 0.25)], true) == pytest.approx((0.5 + 0 + 0 + 0.5) / 4)
    assert similarity([0.2, 0.8], 1) == pytest.approx(0.8)
    assert nss([0.0, 0.0, 1.0], 2) == pytest.approx(np.sqrt(2))
    assert nss([0.5, 0.5], 0) == 0
