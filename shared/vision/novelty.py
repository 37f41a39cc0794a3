"""Whether a picture is of the kind that a network was trained on: how far its features are from the known ones.

Knows arrays of features; knows no network and no picture. A Gaussian is fitted to the features of training pictures
(Lee et al., *A Simple Unified Framework for Detecting Out-of-Distribution Samples*, NeurIPS 2018, with one class);
its covariance is shrunk, because there are fewer pictures than a full one needs. Where pictures of other kinds are at
hand, linear classifiers learn to tell these apart from the known ones (outlier exposure: Hendrycks et al., ICLR 2019),
and whichever finds a picture stranger is heard.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import minimize
from scipy.special import expit
from scipy.stats import rankdata

from shared.registry.weights import FAMILIAR

Array = NDArray[np.float32]


FOLDS = 5
"""Parts of the known features, each compared with what the others say."""

FAR = 8.0
"""Standard deviations beyond which a feature counts no more for a plane."""

STEEP = 10.0
"""Standard deviations from a plane beyond which one picture is as strange as another."""

SLIGHT = 0.01
"""Weight of the squares of a plane's direction, over features of unit variance."""


@dataclass(frozen=True, slots=True, eq=False)
class Boundaries:
    """Planes between known features and those of k other kinds, one for each.

    Attributes:
        directions: (c, k).
        offsets: (k,); features times `directions`, less these, are 0 where a warning begins and 1 a standard deviation
            of the known ones beyond.
        reach: Distance from the Gaussian at which a warning begins.
    """

    directions: Array
    offsets: Array
    reach: float

    @classmethod
    def fit(
        cls, known: Array, groups: NDArray[np.int64], foreign: Sequence[Array], reach: float, inside: float
    ) -> Self:
        """Logistic regressions between known features (n, c) and each other kind (m, c).

        Args:
            known: Of pictures of the kind.
            groups: Which of them belong together (n,).
            foreign: Of other kinds.
            reach: See the class.
            inside: Share of new pictures of the kind that are to be on this side of each plane.
        """
        along, place = np.empty((len(known), len(foreign))), groups % FOLDS
        for fold in np.unique(place):
            away = place != fold
            rest = known[away] if away.any() else known
            along[~away] = known[~away] @ np.stack([_between(rest, each) for each in foreign], axis=1)
        directions = np.stack([_between(known, each) for each in foreign], axis=1)
        return cls(directions, np.quantile(along, inside, axis=0).astype(np.float32), reach)

    def without(self, index: int) -> Self:
        """Those of all kinds but one."""
        return replace(
            self, directions=np.delete(self.directions, index, axis=1), offsets=np.delete(self.offsets, index)
        )

    def distance(self, features: Array) -> Array:
        """How far beyond the nearest plane features (n, c) are (n,), on the scale of distances from the Gaussian."""
        beyond = (features @ self.directions - self.offsets).max(axis=1, initial=-STEEP)
        return np.asarray(self.reach * np.exp(np.clip(beyond, -STEEP, STEEP)), np.float32)


@dataclass(frozen=True, slots=True, eq=False)
class Familiar:
    """What features of known pictures look like.

    Attributes:
        mean: (c,).
        whitener: (c, k); features less the mean, times this, have unit variance along each of k axes.
        rest: What is left of the variance beyond these axes, per axis.
        boundaries: Between these and other kinds, where those were learnt.
    """

    mean: Array
    whitener: Array
    rest: float
    boundaries: Boundaries | None = None

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
        found = np.asarray(np.sqrt((np.square(along).sum(axis=1) + beyond) / len(self.mean)), np.float32)
        return found if self.boundaries is None else np.maximum(found, self.boundaries.distance(features))

    def beside(self, boundaries: Boundaries | None) -> Self:
        """The same, with boundaries to other kinds."""
        return replace(self, boundaries=boundaries)

    def arrays(self) -> dict[str, Array]:
        """As tensors for a weights file."""
        found = {
            f"{FAMILIAR}mean": self.mean,
            f"{FAMILIAR}whitener": self.whitener,
            f"{FAMILIAR}rest": np.array([self.rest], np.float32),
        }
        if (planes := self.boundaries) is not None:
            found[f"{FAMILIAR}directions"] = planes.directions
            found[f"{FAMILIAR}offsets"] = np.append(planes.offsets, np.float32(planes.reach))
        return found

    @classmethod
    def read(cls, arrays: Mapping[str, NDArray[np.generic]]) -> Self | None:
        """From the tensors of a weights file; None where it holds none."""
        if f"{FAMILIAR}mean" not in arrays:
            return None
        mean, whitener, rest = (
            np.asarray(arrays[f"{FAMILIAR}{name}"], np.float32) for name in ("mean", "whitener", "rest")
        )
        found = cls(mean, whitener, float(rest[0]))
        if f"{FAMILIAR}directions" not in arrays:
            return found
        directions, offsets = (
            np.asarray(arrays[f"{FAMILIAR}{name}"], np.float32) for name in ("directions", "offsets")
        )
        return found.beside(Boundaries(directions, offsets[:-1], float(offsets[-1])))


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
        gap = share * (expit(z) - y)
        value = (share * (np.logaddexp(0, z) - y * z)).sum() + SLIGHT / 2 * (slopes**2).sum()
        return float(value), np.append(x.T @ gap + SLIGHT * slopes, gap.sum())

    slopes = minimize(loss, np.zeros(x.shape[1] + 1), jac=True, method="L-BFGS-B").x[:-1] / scale
    return np.asarray(slopes / ((known @ slopes).std() + 1e-9), np.float32)


def cross_distances(features: Array, groups: NDArray[np.int64], folds: int = FOLDS, axes: int = 32) -> Array:
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
