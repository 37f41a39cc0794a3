"""Walking from logits: the likeliest path, drawn paths, barred places, and where a path ends."""

import numpy as np
import pytest

from services.detection.gaze.scanpaths import decode_scanpaths


def chain(fixations: np.ndarray) -> np.ndarray:
    """After t fixations object t is likeliest; after 3 the end (index 5) is."""
    logits = np.zeros((len(fixations), 7))
    logits[:, 5 if fixations.shape[1] >= 3 else fixations.shape[1]] = 9
    logits[:, 6] = 99  # padding must never win
    return logits


def test_the_likeliest_path_ends_where_the_end_is_likeliest():
    (found,) = decode_scanpaths(chain, 1, 10)
    assert found.objects == [0, 1, 2]
    assert found.ended
    assert found.probabilities.shape == (3, 6)
    np.testing.assert_allclose(found.probabilities.sum(1), 1)


def test_a_path_that_does_not_end_is_cut():
    (found,) = decode_scanpaths(lambda fixations: np.eye(7)[[2] * len(fixations)] * 9, 1, 4)
    assert found.objects == [2, 2, 2, 2]
    assert not found.ended


def test_the_first_step_never_ends_a_path():
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
