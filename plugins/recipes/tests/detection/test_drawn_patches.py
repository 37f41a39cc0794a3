"""Drawn patches of pavement, what the demo recipes learn: balanced, the same each time, compared in pairs."""

import numpy as np
import pytest

from fovea_recipes.detection.patnet.data import draw_split
from fovea_recipes.detection.patnet.recipe import paired_difference


def test_the_difference_of_equal_scores_is_zero_and_its_interval_holds_the_mean():
    first, second = np.array([True, True, False, True]), np.array([True, False, False, True])
    low, mean, high = paired_difference(first, second)
    assert mean == pytest.approx(0.25)
    assert low < mean < high
    assert high - mean == pytest.approx(1.96 * 0.25)
    assert paired_difference(first, first) == (0, 0, 0)


def test_patches_depend_on_their_number_alone_and_are_balanced():
    held = draw_split("train", 12, seed=5)
    assert np.array_equal(held.images[:6], draw_split("train", 6, seed=5).images)
    assert held.labels.tolist() == [0, 1, 2, 3, 4, 5] * 2
    assert not np.array_equal(draw_split("valid", 6, seed=5).images, held.images[:6])
    assert held.images.shape == (12, 96, 96, 3)
