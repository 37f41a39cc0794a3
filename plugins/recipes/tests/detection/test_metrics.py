"""Measures of boxes and segments: golden tables, resamples, counts, and cases that one can count by hand."""

from typing import Any

import numpy as np
import pytest

from fovea_recipes.detection.metrics import box_average_precision, temporal
from fovea_recipes.detection.metrics.boxes import resampled_map50
from fovea_recipes.detection.model_selection import choose_scores, count_errors
from fovea_recipes.detection.patnet.recipe import paired_difference
from plugins.recipes.tests.golden_files import read

ONE = np.array([[0, 0, 0, 10, 10]], float)


def test_every_class_and_threshold_equals_the_published_one():
    golden = read("box_map.json")
    truth, found = ([np.array(rows).reshape(-1, n) for rows in golden[k]] for k, n in (("gt", 5), ("pred", 6)))
    precision = box_average_precision(truth, found, golden["iou"])
    np.testing.assert_allclose(precision, golden["ap"], atol=1e-6)
    assert precision[:, 0].mean() == pytest.approx(golden["map50"], abs=1e-6)
    assert precision.mean() == pytest.approx(golden["map"], abs=1e-6)


def test_nothing_found_scores_zero_other_classes_do_not_count_and_a_detection_has_no_second_choice():
    assert box_average_precision([ONE], [np.zeros((0, 6))]).tolist() == [[0.0] * 10]
    assert box_average_precision([ONE], [np.array([[0, 0, 10, 10, 0.9, 1]], float)]).max() == 0
    truth = np.array([[0, 0, 0, 10, 10], [0, 0, 3, 10, 13]], float)
    found = np.array([[0, 0, 10, 10, 0.9, 0], [0, 1, 10, 11, 0.8, 0]], float)  # the second fits the first object best
    assert box_average_precision([truth], [found], (0.5,))[0, 0] < 0.76


@pytest.mark.parametrize("protocol", ["anet", "thumos"])
def test_precision_equals_the_published_evaluation(protocol):
    golden = read("activitynet_map.json")
    wanted = golden["result"][protocol]
    found = temporal.temporal_average_precision(golden["gt"], golden["pred"], wanted["tiou"])
    np.testing.assert_allclose(found.T, wanted["ap_per_class"], atol=1e-9)
    assert found.mean() == pytest.approx(wanted["average_mAP"], abs=1e-9)


def test_nothing_found_has_precision_and_recall_zero_and_recall_looks_at_the_best_only():
    truth = [("a", 0.0, 1.0, 0)]
    assert temporal.temporal_average_precision(truth, [], (0.5,)).tolist() == [[0]]
    assert temporal.average_recall(truth, [], 10) == 0
    found = [("a", 3.0, 4.0, 0.9), ("a", 0.0, 0.8, 0.5)]
    assert temporal.average_recall(truth, found, 1, (0.5,)) == 0
    assert temporal.average_recall(truth, found, 2, (0.5, 0.9)) == 0.5


LEVELS = (0.3, 0.5, 0.75)


def rows(rng: np.random.Generator, per_video: int, *, scored: bool) -> list[tuple[Any, ...]]:
    made = []
    for video in range(6):
        for _ in range(rng.integers(per_video + 1)):
            start = rng.uniform(0, 0.8)
            score = (rng.uniform(),) if scored else ()
            made.append((video, start, start + rng.uniform(0.05, 0.2), int(rng.integers(3)), *score))
    return made


def copied(some: list[tuple[Any, ...]], videos: list[int]) -> list[tuple[Any, ...]]:
    return [(place, *row[1:]) for place, video in enumerate(videos) for row in some if row[0] == video]


@pytest.mark.parametrize("seed", range(8))
def test_resampled_scores_are_those_of_copied_rows(seed):
    rng = np.random.default_rng(seed)
    truth, found = rows(rng, 4, scored=False), rows(rng, 25, scored=True)
    for videos in (list(range(6)), [0, 0, 3, 5, 5, 5], rng.integers(6, size=6).tolist()):
        there, seen = copied(truth, videos), copied(found, videos)
        got = temporal.resampled_precision(truth, found, LEVELS)(np.array(videos))
        np.testing.assert_allclose(got, temporal.temporal_average_precision(there, seen, LEVELS).reshape(got.shape))
        share = temporal.resampled_recall(truth, found, 5, LEVELS)(np.array(videos))
        assert share == pytest.approx(temporal.average_recall(there, seen, 5, LEVELS))


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
    chosen, intervals = choose_scores(*pictures(40), ("square",))
    metrics = chosen.metrics
    assert metrics["calibration_error"] < metrics["calibration_error_raw"]
    assert metrics["count_error_square"] < 0.15
    assert abs(metrics["count_total_square"]) < 0.1
    low, high = intervals["count_error_square"]
    assert low <= metrics["count_error_square"] <= high
    assert 0 < chosen.constants["confidence"] < 1


def test_counts_are_compared_by_class_and_one_picture_is_enough():
    truth, found = pictures(1)
    assert choose_scores(truth, found, ("square",))[0].metrics["count_error_all"] < 1
    assert choose_scores(truth, [found[0][:0]], ("square",))[0].metrics["count_error_all"] == 1
    truth = [np.array([[0, 0, 0, 9, 9], [1, 0, 0, 9, 9]], float), np.zeros((0, 5))]
    found = [np.array([[0, 0, 9, 9, 0.9, 0]], float), np.zeros((0, 6))]
    errors, _ = count_errors(truth, found, ("a", "b", "c"))
    assert (errors["count_error_a"], errors["count_error_b"], errors["count_error_all"]) == (0, 1, 0.5)
    assert "count_error_c" not in errors


def test_a_resample_of_all_has_their_precision_and_equal_scores_differ_by_zero():
    truth, found = pictures(12)
    whole = float(box_average_precision(truth, found, (0.5,)).mean())
    assert resampled_map50(truth, found)(np.arange(12)) == whole
    assert resampled_map50(truth, found)(np.array([3, 3, 3])) != whole
    first, second = np.array([True, True, False, True]), np.array([True, False, False, True])
    low, mean, high = paired_difference(first, second)
    assert mean == pytest.approx(0.25)
    assert low < mean < high
    assert high - mean == pytest.approx(1.96 * 0.25)
    assert paired_difference(first, first) == (0, 0, 0)
