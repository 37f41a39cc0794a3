"""Scores of detections after calibration are the share that is right, and the least score gives the right counts."""

import numpy as np

from fovea_recipes.detection.metrics.boxes import box_average_precision, resampled_map50
from fovea_recipes.detection.model_selection import choose_scores, count_errors


def pictures(count: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Ten squares each, found with too high scores, between as many false alarms with lower ones."""
    rng, truth, found = np.random.default_rng(0), [], []
    for _ in range(count):
        corners = np.array([(x * 100.0, y * 100.0) for x in range(5) for y in range(4)])
        boxes = np.column_stack([corners, corners + 50])
        score = np.where((np.arange(20) < 10), rng.beta(8, 2, 20), rng.beta(4, 4, 20))
        rows = np.column_stack([boxes, score, np.zeros(20)])[np.argsort(-score)]
        truth.append(np.column_stack([np.zeros(10), boxes[:10]]))
        found.append(rows)
    return truth, found


def test_the_chosen_score_counts_right_and_scores_are_calibrated():
    chosen = choose_scores(*pictures(40), ("square",))
    metrics = chosen.calibration.metrics
    assert metrics["calibration_error"] < metrics["calibration_error_raw"]
    assert metrics["count_error_square"] < 0.15
    assert abs(metrics["count_total_square"]) < 0.1
    low, high = chosen.intervals["count_error_square"]
    assert low <= metrics["count_error_square"] <= high
    assert 0 < chosen.calibration.constants["confidence"] < 1


def test_one_picture_is_enough_not_to_fail():
    truth, found = pictures(1)
    assert choose_scores(truth, found, ("square",)).calibration.metrics["count_error_all"] < 1
    assert choose_scores(truth, [found[0][:0]], ("square",)).calibration.metrics["count_error_all"] == 1


def test_counts_are_compared_by_class_where_there_is_any():
    truth = [np.array([[0, 0, 0, 9, 9], [1, 0, 0, 9, 9]], float), np.zeros((0, 5))]
    found = [np.array([[0, 0, 9, 9, 0.9, 0]], float), np.zeros((0, 6))]
    errors, _ = count_errors(truth, found, ("a", "b", "c"))
    assert (errors["count_error_a"], errors["count_error_b"], errors["count_error_all"]) == (0, 1, 0.5)
    assert "count_error_c" not in errors


def test_a_resample_of_all_pictures_has_their_precision():
    truth, found = pictures(12)
    whole = float(box_average_precision(truth, found, (0.5,)).mean())
    assert resampled_map50(truth, found)(np.arange(12)) == whole
    assert resampled_map50(truth, found)(np.array([3, 3, 3])) != whole
