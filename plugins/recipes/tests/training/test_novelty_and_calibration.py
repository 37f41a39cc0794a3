"""Unknown kinds are farther than known ones, and calibrated scores are right as often as they say."""

import numpy as np
import pytest

from fovea_recipes.training.novelty import drop_boundary, fit_boundaries, fit_gaussian
from fovea_recipes.training.score_calibration import fit_platt, fit_temperature, reliability
from shared.vision.calibration import Platt
from shared.vision.novelty import InDistributionModel


def kind(rng: np.random.Generator, count: int, offset: float = 0.0) -> np.ndarray:
    mix = np.random.default_rng(1).normal(size=(6, 40))
    noise = rng.normal(size=(count, 6)) @ mix + 0.1 * rng.normal(size=(count, 40))
    return (noise + offset * np.random.default_rng(2).normal(size=40)).astype(np.float32)


def test_known_features_are_near_and_others_far():
    rng = np.random.default_rng(0)
    fitted = fit_gaussian(kind(rng, 300), axes=8)
    known, unknown = fitted.distance(kind(rng, 200)), fitted.distance(kind(rng, 200, offset=2.0))
    assert 0.4 < np.median(known) < 1.4
    assert (unknown[:, None] > known).mean() > 0.99


def test_distance_is_that_of_a_full_gaussian_where_all_axes_are_kept():
    rng = np.random.default_rng(3)
    x = (rng.normal(size=(5000, 5)) * [1, 2, 3, 1, 2]).astype(np.float32)
    fitted = fit_gaussian(x, axes=4)
    y = rng.normal(size=(50, 5)).astype(np.float32)
    apart = y - x.mean(axis=0)
    exact = np.sqrt(np.einsum("ni,ij,nj->n", apart, np.linalg.inv(np.cov(x.T)), apart) / 5)
    assert np.allclose(fitted.distance(y), exact, rtol=0.02)


def test_it_survives_a_weights_file_in_half_precision():
    rng = np.random.default_rng(0)
    fitted = fit_gaussian(kind(rng, 100))
    again = InDistributionModel.read({name: array.astype(np.float16) for name, array in fitted.arrays().items()})
    assert again is not None
    y = kind(rng, 20)
    assert np.allclose(again.distance(y), fitted.distance(y), rtol=0.02)
    assert InDistributionModel.read({"weight": np.zeros(3)}) is None


def test_a_kind_that_was_learnt_is_far_where_the_gaussian_finds_it_near():
    rng = np.random.default_rng(0)
    known, groups = rng.normal(size=(400, 30)).astype(np.float32), np.arange(400)
    moved = np.float32(1.2) * (np.arange(30) < 6)
    other, fitted = (rng.normal(size=(120, 30)) + moved).astype(np.float32), fit_gaussian(known)
    planes = fit_boundaries(known, groups, [other[::2]], reach=1.5, inside=0.99)
    both = fitted.beside(planes)
    assert (both.distance(rng.normal(size=(400, 30)).astype(np.float32)) > 1.5).mean() < 0.04
    assert (fitted.distance(other[1::2]) > 1.5).mean() < 0.2
    assert (both.distance(other[1::2]) > 1.5).mean() > 0.6
    again = InDistributionModel.read(both.arrays())
    assert again is not None
    assert np.allclose(again.distance(other), both.distance(other))
    assert np.allclose(fitted.beside(drop_boundary(planes, 0)).distance(other), fitted.distance(other))


@pytest.mark.parametrize("true", [0.5, 1.0, 2.5])
def test_the_temperature_is_found_again(true):
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(20_000, 4)) * 2
    odds = np.exp(logits)
    labels = (rng.random((len(odds), 1)) > (odds / odds.sum(1, keepdims=True)).cumsum(1)).sum(1)
    assert fit_temperature(logits * true, labels) == pytest.approx(true, rel=0.05)


def test_platt_makes_scores_reliable_and_keeps_their_order():
    rng = np.random.default_rng(0)
    truth = rng.random(20_000)
    hits = rng.random(len(truth)) < truth
    shy = Platt(0.5, -1.0)(truth)
    fitted = fit_platt(shy, hits)
    assert reliability(shy, hits).error > 0.1
    assert reliability(fitted(shy), hits).error < 0.02
    assert np.allclose(fitted.inverse(fitted(shy)), shy, atol=1e-6)
    assert (np.argsort(fitted(shy)) == np.argsort(shy)).all()


def test_hits_that_are_all_alike_change_nothing():
    assert fit_platt([0.2, 0.9], [1, 1]) == Platt()


def test_reliability_of_a_small_case():
    found = reliability([0.05, 0.05, 0.95, 0.95], [0, 0, 1, 0])
    assert (found.counts, found.error) == ((2, 2), pytest.approx((0.05 + 0.45) / 2))
