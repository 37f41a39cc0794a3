"""Metrics of polyps and empty crops: edge cases, symmetries, and pysodmetrics where its definitions coincide."""

import math

import numpy as np
import py_sod_metrics as oracle
import pytest

from fovea_recipes.medical_seg.empty_crops import choose_peak, crops_without_polyp, drop_faint, share_clean
from fovea_recipes.medical_seg.metrics import dataset_scores, segmentation_scores


def drawn(seed: int, height: int = 24, width: int = 31) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:height, :width]
    mask = (rows - rng.integers(6, 18)) ** 2 + (columns - rng.integers(6, 25)) ** 2 < rng.integers(9, 80)
    return ((0.4 * mask + rng.uniform(0.5, 0.6) * rng.random(mask.shape)) * 255).astype(np.uint8), mask


def test_scores_of_polyp_free_and_of_faint_frames_follow_the_toolbox():
    scores = segmentation_scores(np.zeros((8, 8), np.uint8), np.zeros((8, 8), bool))
    assert scores["mean_specificity"] == scores["mean_dice"] == scores["dice_at_half"] == 0
    assert scores["s_measure"] == 1
    assert math.isnan(scores["weighted_f"])
    _, mask = drawn(3)
    scores = segmentation_scores((mask.astype(np.uint8) * 100), mask)
    assert (scores["max_dice"], scores["dice_at_half"]) == (pytest.approx(1), 0)


def test_curves_are_averaged_before_the_maximum_and_empty_masks_left_out_of_weighted_f():
    pairs = [drawn(seed) for seed in range(4)]
    singles = [segmentation_scores(*pair) for pair in pairs]
    scores = dataset_scores(pairs)
    assert scores["mean_dice"] == pytest.approx(np.mean([s["mean_dice"] for s in singles]))
    assert scores["max_dice"] < np.mean([s["max_dice"] for s in singles])
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


def disc(side: int, y: int, x: int, radius: int) -> np.ndarray:
    rows, columns = np.mgrid[:side, :side]
    return (rows - y) ** 2 + (columns - x) ** 2 < radius**2


def test_crops_show_nothing_that_is_marked_and_components_without_a_sure_pixel_go():
    masks = np.stack([disc(64, 12, 12, 10), np.ones((64, 64), bool)])
    images = np.repeat(masks[..., None], 3, axis=-1).astype(np.uint8) * 255
    crops = crops_without_polyp(images, masks, np.random.default_rng(0))
    assert crops.shape == (1, 64, 64, 3)
    assert crops.max() == 0
    assert len(crops_without_polyp(images[1:], masks[1:], np.random.default_rng(0))) == 0
    page = np.where(disc(64, 16, 16, 8), 0.6, np.where(disc(64, 48, 48, 8), 0.55, 0.1)).astype(np.float32)
    page[48, 48] = 0.9
    left = drop_faint(page[None], 0.7)[0] >= 0.5
    assert not left[:32].any()
    assert left[48, 48]
    assert np.array_equal(left[32:], page[32:] >= 0.5)


def test_the_least_peak_that_keeps_crops_empty_is_chosen_unless_polyps_go():
    masks = np.stack([disc(64, 32, 32, 12)] * 4)
    maps = np.where(masks, 0.95, 0.05).astype(np.float32)
    faint = np.full((4, 64, 64), 0.05, np.float32)
    faint[:, 10:20, 10:20] = 0.65
    assert share_clean(faint, 0.6) == 0
    assert choose_peak(maps, masks, faint) == 0.7
    assert choose_peak(np.where(masks, 0.6, 0.05).astype(np.float32), masks, faint) == 0.6
    assert choose_peak(maps, masks, faint[:0]) == 0.5
