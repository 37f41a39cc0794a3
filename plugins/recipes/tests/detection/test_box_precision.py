"""Average precision of boxes: the golden table, and cases that one can count by hand."""

import numpy as np
import pytest

from fovea_recipes.detection.metrics import box_average_precision, box_scores
from plugins.recipes.tests.golden_files import read

ONE = np.array([[0, 0, 0, 10, 10]], float)


def test_every_class_and_threshold_equals_the_published_one():
    golden = read("box_map.json")
    truth, found = ([np.array(rows).reshape(-1, n) for rows in golden[k]] for k, n in (("gt", 5), ("pred", 6)))
    precision = box_average_precision(truth, found, golden["iou"])
    np.testing.assert_allclose(precision, golden["ap"], atol=1e-6)
    assert precision[:, 0].mean() == pytest.approx(golden["map50"], abs=1e-6)
    assert precision.mean() == pytest.approx(golden["map"], abs=1e-6)


def test_nothing_found_scores_zero_and_other_classes_do_not_count():
    assert box_average_precision([ONE], [np.zeros((0, 6))]).tolist() == [[0.0] * 10]
    assert box_average_precision([ONE], [np.array([[0, 0, 10, 10, 0.9, 1]], float)]).max() == 0


def test_the_same_object_is_hit_once():
    twice = np.array([[0, 0, 10, 10, 0.9, 0], [0, 0, 10, 10, 0.8, 0]], float)
    two = np.array([[0, 0, 0, 10, 10], [0, 50, 50, 60, 60]], float)
    assert box_average_precision([two], [twice], (0.5,))[0, 0] == pytest.approx(0.625, abs=0.01)


def test_a_detection_has_no_second_choice():
    truth = np.array([[0, 0, 0, 10, 10], [0, 0, 3, 10, 13]], float)
    found = np.array([[0, 0, 10, 10, 0.9, 0], [0, 1, 10, 11, 0.8, 0]], float)  # the second fits the first object best
    assert box_average_precision([truth], [found], (0.5,))[0, 0] < 0.76


def test_scores_are_named_by_class():
    scores = box_scores([ONE], [np.array([[0, 0, 10, 10, 0.9, 0]], float)], ("crack", "hole"))
    assert set(scores) == {"map50", "map50_95", "ap50_crack"}
