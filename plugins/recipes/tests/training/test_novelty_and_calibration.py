"""Unknown kinds are farther than known ones; calibrated scores are right as often as they say; intervals cover."""

import numpy as np
import pytest
from PIL import Image

from fovea_recipes.training.calibrate import fit_novelty_detector, reliability_facts, sample_pictures
from fovea_recipes.training.intervals import bootstrap, bootstraps, mean_interval
from fovea_recipes.training.novelty import auroc, cross_distances, fit_gaussian
from fovea_recipes.training.score_calibration import fit_platt, fit_temperature, reliability
from shared.vision.calibration import Platt
from shared.vision.novelty import InDistributionModel


def kind(rng: np.random.Generator, count: int, offset: float = 0.0) -> np.ndarray:
    mix = np.random.default_rng(1).normal(size=(6, 40))
    noise = rng.normal(size=(count, 6)) @ mix + 0.1 * rng.normal(size=(count, 40))
    return (noise + offset * np.random.default_rng(2).normal(size=40)).astype(np.float32)


def test_distance_is_that_of_a_full_gaussian_larger_across_folds_and_survives_half_precision():
    rng = np.random.default_rng(3)
    x = (rng.normal(size=(5000, 5)) * [1, 2, 3, 1, 2]).astype(np.float32)
    fitted = fit_gaussian(x, axes=4)
    y = rng.normal(size=(50, 5)).astype(np.float32)
    apart = y - x.mean(axis=0)
    exact = np.sqrt(np.einsum("ni,ij,nj->n", apart, np.linalg.inv(np.cov(x.T)), apart) / 5)
    assert np.allclose(fitted.distance(y), exact, rtol=0.02)
    rng = np.random.default_rng(0)
    fitted = fit_gaussian(kind(rng, 100))
    again = InDistributionModel.read({name: array.astype(np.float16) for name, array in fitted.arrays().items()})
    y = kind(rng, 20)
    assert np.allclose(again.distance(y), fitted.distance(y), rtol=0.02)
    assert InDistributionModel.read({"weight": np.zeros(3)}) is None
    few = kind(np.random.default_rng(0), 30)
    assert np.median(cross_distances(few, np.arange(30))) > np.median(fit_gaussian(few).distance(few))
    assert len(cross_distances(few[:2], np.zeros(2, np.int64))) == 2
    assert auroc([1, 2, 3], [4, 5]) == 1
    assert (auroc([1, 2], [1, 2]), auroc([3], [1, 2])) == (0.5, 0)


@pytest.mark.parametrize("true", [0.5, 2.5])
def test_the_temperature_is_found_again(true):
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(20_000, 4)) * 2
    odds = np.exp(logits)
    labels = (rng.random((len(odds), 1)) > (odds / odds.sum(1, keepdims=True)).cumsum(1)).sum(1)
    assert fit_temperature(logits * true, labels) == pytest.approx(true, rel=0.05)


def test_platt_makes_scores_reliable_and_keeps_their_order_also_in_small_cases():
    rng = np.random.default_rng(0)
    truth = rng.random(20_000)
    hits = rng.random(len(truth)) < truth
    shy = Platt(0.5, -1.0)(truth)
    fitted = fit_platt(shy, hits)
    assert reliability(shy, hits)[0] > 0.1
    assert reliability(fitted(shy), hits)[0] < 0.02
    assert np.allclose(fitted.inverse(fitted(shy)), shy, atol=1e-6)
    assert (np.argsort(fitted(shy)) == np.argsort(shy)).all()
    assert fit_platt([0.2, 0.9], [1, 1]) == Platt()
    error, bins = reliability([0.05, 0.05, 0.95, 0.95], [0, 0, 1, 0])
    assert ([count for _, _, count in bins], error) == ([2, 2], pytest.approx((0.05 + 0.45) / 2))
    rng = np.random.default_rng(0)
    true = rng.random(4000)
    found = reliability_facts(true**3, true, rng.random(4000) < true)
    assert found.metrics["calibration_error"] < 0.03
    assert found.metrics["calibration_error_raw"] > 0.15
    assert sum(found.notes["reliability"]["counts"]) == 4000


def test_new_pictures_of_the_kind_pass_others_are_warned_of_and_half_of_a_foreign_kind_is_learnt():
    rng = np.random.default_rng(0)
    known, held, walls = kind(rng, 200), kind(rng, 100), kind(rng, 50, offset=2.0)
    found = fit_novelty_detector(known, np.arange(200) // 2, held, {"walls": walls})
    assert found.metrics["false_warnings"] <= 0.06
    assert found.metrics["auroc_walls"] > 0.99
    assert found.metrics["warned_walls"] > 0.9
    again = InDistributionModel.read(found.arrays)
    assert (again.distance(kind(rng, 100)) > found.constants["novelty"]).mean() < 0.06
    rng = np.random.default_rng(0)
    known, held = (rng.normal(size=(count, 30)).astype(np.float32) for count in (400, 200))
    walls, others = ((rng.normal(size=(120, 30)) + 1.2 * (np.arange(30) < 6)).astype(np.float32) for _ in range(2))
    unlearnt = fit_novelty_detector(known, np.arange(400) // 2, held, {"walls": walls}).metrics
    found = fit_novelty_detector(known, np.arange(400) // 2, held, {}, {"walls": walls})
    learnt = found.metrics
    assert learnt["auroc_walls"] > unlearnt["auroc_walls"] + 0.05
    assert learnt["warned_walls"] > unlearnt["warned_walls"] + 0.3
    assert abs(learnt["auroc_unlearnt_walls"] - unlearnt["auroc_walls"]) < 0.01
    assert learnt["false_warnings"] <= 0.06
    again = InDistributionModel.read(found.arrays)
    assert (again.distance(others) > found.constants["novelty"]).mean() > unlearnt["warned_walls"] + 0.3


def test_masks_alone_or_beside_their_photographs_are_no_pictures_of_another_kind(tmp_path):
    for place in ("images", "masks"):
        (tmp_path / place).mkdir()
        for index in range(4):
            Image.new("RGB", (8, 8)).save(tmp_path / place / f"{index}.png")
    found = sample_pictures(tmp_path, 3)
    assert (len(found), {path.parent.name for path in found}) == (3, {"images"})
    (beside := tmp_path / "beside").mkdir()
    for index in range(4):
        Image.new("RGB", (8, 8)).save(beside / f"{index}.jpg")
        Image.new("P", (8, 8)).save(beside / f"{index}.png")
    Image.new("RGB", (8, 8)).save(beside / "alone.png")
    found = sample_pictures(beside, 99)
    assert [path.name for path in found] == ["0.jpg", "1.jpg", "2.jpg", "3.jpg", "alone.png"]


def test_intervals_cover_the_truth_of_any_statistic_and_several_share_their_draws():
    rng = np.random.default_rng(0)
    held = [mean_interval(rng.normal(size=60), rounds=300, seed=seed) for seed in range(100)]
    assert 0.86 < np.mean([low <= 0 <= high for low, high in held]) <= 1.0
    x = np.arange(100.0)
    low, high = bootstrap(100, lambda indices: float(np.median(x[indices])), rounds=400)
    assert 30 < low < 49.5 < high < 70
    values = rng.normal(0, 1, 50)
    both = bootstraps(50, lambda some: {"mean": float(values[some].mean()), "most": float(values[some].max())})
    assert (both["mean"], both["most"][1]) == (mean_interval(values), values.max())
