"""How sure a measured number is: percentile bootstrap over what was measured.

Knows indices and numbers; knows no metric.
"""

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import ArrayLike, NDArray

Indices = NDArray[np.int64]

LEVEL = 0.95


def bootstrap(count: int, statistic: Callable[[Indices], float], **draws: int) -> tuple[float, float]:
    """Ends of the 95 % interval of a statistic over `count` samples (pictures: they are what is independent).

    The statistic takes indices of samples, some of them several times; `draws` are those of `bootstraps`.
    """
    return bootstraps(count, lambda indices: {"": statistic(indices)}, **draws)[""]


def bootstraps(
    count: int, statistics: Callable[[Indices], Mapping[str, float]], *, rounds: int = 1000, seed: int = 0
) -> dict[str, tuple[float, float]]:
    """As `bootstrap`, of several statistics at once, by name: all of them of the same draws."""
    rng = np.random.default_rng(seed)
    drawn = [statistics(rng.integers(count, size=count)) for _ in range(rounds)]
    found = {}
    for name in drawn[0]:
        low, high = np.nanquantile([each[name] for each in drawn], [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        found[name] = (float(low), float(high))
    return found


def mean_interval(values: ArrayLike, **draws: int) -> tuple[float, float]:
    """Ends of the 95 % interval of a mean; `draws` are those of `bootstraps`."""
    x = np.asarray(values, np.float64)
    return bootstrap(len(x), lambda indices: float(x[indices].mean()), **draws)
