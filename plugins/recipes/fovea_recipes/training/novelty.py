"""Fitting of the features that a network knows: a Gaussian, planes to other kinds, and how well both tell them apart.

Knows arrays of features; knows no network and no picture.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from shared.lazy_module import LazyModule
from shared.vision.novelty import Array, Boundaries, InDistributionModel

optimize, special, stats = (LazyModule(f"scipy.{name}") for name in ("optimize", "special", "stats"))

FOLDS = 5
"""Parts of the known features, each compared with what the others say."""

FAR = 8.0
"""Standard deviations beyond which a feature counts no more for a plane."""

SLIGHT = 0.01
"""Weight of the squares of a plane's direction, over features of unit variance."""


def fit_gaussian(features: Array, axes: int = 32) -> InDistributionModel:
    """A Gaussian of features (n, c): its `axes` largest axes, and one variance for all others.

    Small variances are not trusted: each is at least a hundredth of the mean variance.
    """
    x = features.astype(np.float64)
    mean = x.mean(axis=0)
    _, singular, rows = np.linalg.svd(x - mean, full_matrices=False)
    variance = singular**2 / max(len(x) - 1, 1)
    count = min(axes, len(variance) - 1, x.shape[1] - 1)
    floor = 0.01 * variance.sum() / x.shape[1] + 1e-12
    rest = max(variance[count:].sum() / max(x.shape[1] - count, 1), floor)
    whitener = rows[:count].T / np.sqrt(np.maximum(variance[:count], floor))
    return InDistributionModel(mean.astype(np.float32), whitener.astype(np.float32), float(rest))


def fit_boundaries(
    known: Array, groups: NDArray[np.int64], foreign: Sequence[Array], reach: float, inside: float
) -> Boundaries:
    """Logistic regressions between known features (n, c) and each other kind (m, c).

    `groups` (n,) say which known ones belong together; `inside` is the share of new pictures of the kind that are to be
    on this side of each plane, `reach` the distance from the Gaussian at which a warning begins.
    """
    along, place = np.empty((len(known), len(foreign))), groups % FOLDS
    for fold in np.unique(place):
        away = place != fold
        rest = known[away] if away.any() else known
        along[~away] = known[~away] @ np.stack([_between(rest, each) for each in foreign], axis=1)
    directions = np.stack([_between(known, each) for each in foreign], axis=1)
    return Boundaries(directions, np.quantile(along, inside, axis=0).astype(np.float32), reach)


def drop_boundary(boundaries: Boundaries, index: int) -> Boundaries:
    """Return the boundaries without that to one of the kinds."""
    directions, offsets = boundaries.directions, boundaries.offsets
    return replace(boundaries, directions=np.delete(directions, index, axis=1), offsets=np.delete(offsets, index))


def _between(known: Array, foreign: Array) -> Array:
    """The direction (c,) from known features (n, c) to others (m, c), along which the known ones have unit variance.

    Of a logistic regression in which both sides have the same weight.
    """
    mean, scale = known.mean(axis=0, dtype=np.float64), known.std(axis=0, dtype=np.float64) + 1e-6
    # One odd column of a few pictures shall not say all.
    x = np.clip((np.concatenate([known, foreign]) - mean) / scale, -FAR, FAR)
    y = np.repeat([0.0, 1.0], [len(known), len(foreign)])
    share = np.where(y > 0, 0.5 / len(foreign), 0.5 / len(known))

    def loss(knobs: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        z, slopes = x @ knobs[:-1] + knobs[-1], knobs[:-1]
        gap = share * (special.expit(z) - y)
        value = (share * (np.logaddexp(0, z) - y * z)).sum() + SLIGHT / 2 * (slopes**2).sum()
        return float(value), np.append(x.T @ gap + SLIGHT * slopes, gap.sum())

    slopes = optimize.minimize(loss, np.zeros(x.shape[1] + 1), jac=True, method="L-BFGS-B").x[:-1] / scale
    return np.asarray(slopes / ((known @ slopes).std() + 1e-9), np.float32)


def cross_distances(features: Array, groups: NDArray[np.int64], folds: int = FOLDS, axes: int = 32) -> Array:
    """Distance of features (n, c) from a Gaussian that was fitted without their group (n,): what new ones will have."""
    found, place = np.empty(len(features), np.float32), groups % folds
    if len(np.unique(place)) < 2:
        return fit_gaussian(features, axes).distance(features)
    for fold in np.unique(place):
        found[place == fold] = fit_gaussian(features[place != fold], axes).distance(features[place == fold])
    return found


def auroc(known: ArrayLike, other: ArrayLike) -> float:
    """Chance that something else (m,) is farther away than something known (n,): the area under the ROC curve."""
    first, second = np.asarray(known, np.float64), np.asarray(other, np.float64)
    return float(stats.mannwhitneyu(second, first, method="asymptotic").statistic / (len(first) * len(second)))
