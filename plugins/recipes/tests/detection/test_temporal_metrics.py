"""Temporal mAP and recall: equal to the published evaluation, and right where they can be counted by hand."""

import numpy as np
import pytest

from fovea_recipes.detection.metrics import average_recall, temporal_average_precision
from plugins.recipes.tests.golden_files import read


@pytest.mark.parametrize("protocol", ["anet", "thumos"])
def test_precision_equals_the_published_evaluation(protocol):
    golden = read("activitynet_map.json")
    wanted = golden["result"][protocol]
    found = temporal_average_precision(golden["gt"], golden["pred"], wanted["tiou"])
    np.testing.assert_allclose(found.T, wanted["ap_per_class"], atol=1e-9)
    assert found.mean() == pytest.approx(wanted["average_mAP"], abs=1e-9)


def test_predictions_of_other_videos_and_classes_count_as_misses_or_not_at_all():
    truth = [("a", 0.0, 1.0, 0)]
    found = [("b", 0.0, 1.0, 0, 0.9), ("a", 0.0, 1.0, 0, 0.8), ("a", 0.0, 1.0, 7, 1.0)]
    assert temporal_average_precision(truth, found, (0.5,)).tolist() == [[0.5]]


def test_nothing_found_has_precision_and_recall_zero():
    truth = [("a", 0.0, 1.0, 0)]
    assert temporal_average_precision(truth, [], (0.5,)).tolist() == [[0]]
    assert average_recall(truth, [], 10) == 0


def test_recall_looks_at_the_best_proposals_only():
    truth = [("a", 0.0, 1.0, 0)]
    found = [("a", 3.0, 4.0, 0.9), ("a", 0.0, 0.8, 0.5)]
    assert average_recall(truth, found, 1, (0.5,)) == 0
    assert average_recall(truth, found, 2, (0.5, 0.9)) == 0.5
