"""Whether a picture is of the kind that a network was trained on: how far its features are from the known ones.

Knows arrays of features; knows no network and no picture. A Gaussian is fitted to the features of training pictures
(Lee et al., *A Simple Unified Framework for Detecting Out-of-Distribution Samples*, NeurIPS 2018, with one class);
its covariance is shrunk, because there are fewer pictures than a full one needs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import rankdata

from shared.registry.weights import FAMILIAR

__all__ = ["Familiar", "auroc", "cross_distances"]

Array = NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class Familiar:
    """What features of known pictures look like.

    Attributes:
        mean: (c,).
        whitener: (c, k); features less the mean, times this, have unit variance along each of k axes.
        rest: What is left of the variance beyond these axes, per axis.
    """

    mean: Array
    whitener: Array
    rest: float

    @classmethod
    def fit(cls, features: Array, axes: int = 32) -> Self:
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
        return cls(mean.astype(np.float32), whitener.astype(np.float32), float(rest))

    def distance(self, features: Array) -> Array:
        """How far features (n, c) are from the known ones (n,): a root mean square, of the order of 1 inside."""
        apart = features - self.mean
        along = apart @ self.whitener
        scale = np.linalg.norm(self.whitener, axis=0)
        inside = np.square(along / scale).sum(axis=1)
        beyond = np.maximum(np.square(apart).sum(axis=1) - inside, 0) / self.rest
        return np.asarray(np.sqrt((np.square(along).sum(axis=1) + beyond) / len(self.mean)), np.float32)

    def arrays(self) -> dict[str, Array]:
        """As tensors for a weights file."""
        return {
            f"{FAMILIAR}mean": self.mean,
            f"{FAMILIAR}whitener": self.whitener,
            f"{FAMILIAR}rest": np.array([self.rest], np.float32),
        }

    @classmethod
    def read(cls, arrays: Mapping[str, NDArray[np.generic]]) -> Self | None:
        """From the tensors of a weights file; None where it holds none."""
        if f"{FAMILIAR}mean" not in arrays:
            return None
        mean, whitener, rest = (
            np.asarray(arrays[f"{FAMILIAR}{name}"], np.float32) for name in ("mean", "whitener", "rest")
        )
        return cls(mean, whitener, float(rest[0]))


def cross_distances(features: Array, groups: NDArray[np.int64], folds: int = 5, axes: int = 32) -> Array:
    """Distance of features (n, c) from a Gaussian that was fitted without their group (n,): what new ones will have."""
    found, place = np.empty(len(features), np.float32), groups % folds
    if len(np.unique(place)) < 2:
        return Familiar.fit(features, axes).distance(features)
    for fold in np.unique(place):
        found[place == fold] = Familiar.fit(features[place != fold], axes).distance(features[place == fold])
    return found


def auroc(known: ArrayLike, other: ArrayLike) -> float:
    """Chance that something else (m,) is farther away than something known (n,): the area under the ROC curve."""
    first, second = np.asarray(known, np.float64), np.asarray(other, np.float64)
    ranks = rankdata(np.concatenate([first, second]))
    return float((ranks[len(first) :].sum() - len(second) * (len(second) + 1) / 2) / (len(first) * len(second)))
