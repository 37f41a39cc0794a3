"""Statistics of scores: means with bootstrap intervals, and differences to dense on the same samples."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from fovea.errors import InvalidOption


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean and its 95 % percentile interval."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Paired:
    """A method against dense, sample by sample."""

    difference: Interval
    worse: int
    better: int
    equal: int


def bootstrap(
    values: Sequence[float], *, groups: Sequence[Hashable] | None = None, draws: int = 2000, seed: int = 0
) -> Interval:
    """Mean over samples; its interval resamples groups, because samples of one context are not independent."""
    return bootstrap_tasks([(values, groups)], draws=draws, seed=seed)


def bootstrap_tasks(
    tasks: Sequence[tuple[Sequence[float], Sequence[Hashable] | None]], *, draws: int = 2000, seed: int = 0
) -> Interval:
    """Mean over tasks, each of equal weight; resampled inside each. A task is its values and their groups."""
    rng = np.random.default_rng(seed)
    means, drawn = [], np.zeros(draws)
    for values, groups in tasks:
        if not len(values):
            raise InvalidOption("There are no scores to take a mean of.", field="values")
        sums, sizes = _by_group(values, groups)
        means.append(sums.sum() / sizes.sum())
        picks = rng.integers(len(sums), size=(draws, len(sums)))
        drawn += sums[picks].sum(1) / sizes[picks].sum(1)
    low, high = np.percentile(drawn / len(tasks), [2.5, 97.5])
    return Interval(float(np.mean(means)), float(low), float(high))


def paired(
    values: Sequence[float],
    dense: Sequence[float],
    *,
    groups: Sequence[Hashable] | None = None,
    draws: int = 2000,
    seed: int = 0,
) -> Paired:
    """Compare with dense on the same samples."""
    if len(values) != len(dense):
        raise InvalidOption(f"{len(values)} scores can't be paired with {len(dense)} of dense.", field="dense")
    differences = [a - b for a, b in zip(values, dense, strict=True)]
    worse, better = sum(x < 0 for x in differences), sum(x > 0 for x in differences)
    return Paired(
        bootstrap(differences, groups=groups, draws=draws, seed=seed), worse, better, len(values) - worse - better
    )


def _by_group(values: Sequence[float], groups: Sequence[Hashable] | None) -> tuple[np.ndarray, np.ndarray]:
    names = list(range(len(values)) if groups is None else groups)
    if len(names) != len(values):
        raise InvalidOption(f"{len(values)} scores have {len(names)} groups.", field="groups")
    at = {name: i for i, name in enumerate(dict.fromkeys(names))}
    index = np.array([at[name] for name in names])
    return np.bincount(index, weights=np.asarray(values, float)), np.bincount(index).astype(float)
