"""The metrics' edge cases and symmetries, and pysodmetrics as an oracle where its definitions coincide."""

import math

import numpy as np
import py_sod_metrics as oracle
import pytest

from fovea_recipes.medical_seg.metrics import dataset_scores, segmentation_scores


def drawn(seed: int, height: int = 24, width: int = 31) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:height, :width]
    mask = (rows - rng.integers(6, 18)) ** 2 + (columns - rng.integers(6, 25)) ** 2 < rng.integers(9, 80)
    return ((0.4 * mask + rng.uniform(0.5, 0.6) * rng.random(mask.shape)) * 255).astype(np.uint8), mask


def test_counting_scores_of_a_polyp_free_frame_are_zero_even_when_nothing_is_found():
    scores = segmentation_scores(np.zeros((8, 8), np.uint8), np.zeros((8, 8), bool))
    assert scores["mean_specificity"] == scores["mean_dice"] == scores["dice_at_half"] == 0
    assert scores["s_measure"] == 1
    assert math.isnan(scores["weighted_f"])


def test_a_prediction_is_stretched_before_thresholds_but_not_at_half():
    _, mask = drawn(3)
    scores = segmentation_scores((mask.astype(np.uint8) * 100), mask)
    assert (scores["max_dice"], scores["dice_at_half"]) == (pytest.approx(1), 0)


def test_a_data_set_averages_curves_before_it_takes_the_maximum():
    pairs = [drawn(seed) for seed in range(4)]
    singles = [segmentation_scores(*pair) for pair in pairs]
    scores = dataset_scores(pairs)
    assert scores["mean_dice"] == pytest.approx(np.mean([s["mean_dice"] for s in singles]))
    assert scores["max_dice"] < np.mean([s["max_dice"] for s in singles])


def test_empty_masks_are_left_out_of_weighted_f_alone():
    some, empty = drawn(6), (np.zeros((24, 31), np.uint8), np.zeros((24, 31), bool))
    scores = dataset_scores([some, empty])
    assert scores["weighted_f"] == segmentation_scores(*some)["weighted_f"]
    assert scores["dice_at_half"] == pytest.approx(segmentation_scores(*some)["dice_at_half"] / 2)


@pytest.mark.parametrize("seed", range(6))
def test_s_measure_weighted_f_mae_and_e_agree_with_pysodmetrics(seed):
    prediction, mask = drawn(seed, 40, 52)
    measures = {"s_measure": oracle.Smeasure(), "weighted_f": oracle.WeightedFmeasure(), "mae": oracle.MAE()}
    expected_e = oracle.Emeasure()
    for measure in (*measures.values(), expected_e):
        measure.step(prediction, mask.astype(np.uint8) * 255)
    scores = segmentation_scores(prediction, mask)
    results = {"s_measure": "sm", "weighted_f": "wfm", "mae": "mae"}
    for key, measure in measures.items():
        assert scores[key] == pytest.approx(float(measure.get_results()[results[key]]), abs=1e-3), key
    assert scores["max_e"] == pytest.approx(float(np.max(expected_e.get_results()["em"]["curve"])), abs=1e-3)
