"""Whether a picture is of the kind that a network was trained on: how far its features are from the known ones.

Knows arrays of features; knows no network and no picture, and fits nothing: training does. A Gaussian is fitted to the
features of training pictures (Lee et al., *A Simple Unified Framework for Detecting Out-of-Distribution Samples*,
NeurIPS 2018, with one class); its covariance is shrunk, because there are fewer pictures than a full one needs. Where
pictures of other kinds are at hand, linear classifiers separate them from the known ones (outlier exposure: Hendrycks
et al., ICLR 2019), and the larger of the two distances counts.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
from numpy.typing import NDArray

from shared.registry.weights import FAMILIAR

Array = NDArray[np.float32]

STEEP = 10.0
"""Standard deviations from a plane beyond which one picture is as strange as another."""


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

    def distance(self, features: Array) -> Array:
        """How far beyond the nearest plane features (n, c) are (n,), on the scale of distances from the Gaussian."""
        beyond = (features @ self.directions - self.offsets).max(axis=1, initial=-STEEP)
        return np.asarray(self.reach * np.exp(np.clip(beyond, -STEEP, STEEP)), np.float32)


@dataclass(frozen=True, slots=True, eq=False)
class InDistributionModel:
    """Distribution of the features of known pictures.

    Attributes:
        mean: (c,).
        whitener: (c, k); features less the mean, times this, have unit variance along each of k axes.
        rest: Variance beyond these axes, per axis.
        boundaries: Boundaries to other kinds, where these were fitted.
    """

    mean: Array
    whitener: Array
    rest: float
    boundaries: Boundaries | None = None

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
