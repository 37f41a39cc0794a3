"""Bootstrap intervals cover the true mean about as often as they say."""

import numpy as np

from fovea_recipes.training.intervals import bootstrap, bootstraps, mean_interval


def test_intervals_cover_the_truth():
    rng = np.random.default_rng(0)
    held = [mean_interval(rng.normal(size=60), rounds=300, seed=seed) for seed in range(100)]
    assert 0.86 < np.mean([low <= 0 <= high for low, high in held]) <= 1.0


def test_any_statistic_of_samples():
    x = np.arange(100.0)
    low, high = bootstrap(100, lambda indices: float(np.median(x[indices])), rounds=400)
    assert 30 < low < 49.5 < high < 70


def test_several_statistics_share_their_draws():
    values = np.random.default_rng(0).normal(0, 1, 50)
    both = bootstraps(50, lambda some: {"mean": float(values[some].mean()), "most": float(values[some].max())})
    assert both["mean"] == mean_interval(values)
    assert both["most"][1] == values.max()
