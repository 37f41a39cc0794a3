"""Bootstrap intervals cover the true mean about as often as they say."""

import numpy as np

from shared.training.intervals import bootstrap, mean_interval


def test_intervals_cover_the_truth() -> None:
    rng = np.random.default_rng(0)
    held = [mean_interval(rng.normal(size=60), rounds=300, seed=seed) for seed in range(100)]
    assert 0.86 < np.mean([low <= 0 <= high for low, high in held]) <= 1.0


def test_any_statistic_of_samples() -> None:
    x = np.arange(100.0)
    low, high = bootstrap(100, lambda indices: float(np.median(x[indices])), rounds=400)
    assert 30 < low < 49.5 < high < 70
