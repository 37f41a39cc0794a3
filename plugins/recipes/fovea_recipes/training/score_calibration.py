"""Fitting of calibrated scores, and how reliable they are.

Knows arrays of logits, scores and hits; knows no network. One temperature for logits of classes or pixels (Guo et al.,
*On Calibration of Modern Neural Networks*, ICML 2017); slope and offset in logits for boxes, whose scores start biased
(Platt, 1999).
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import minimize, minimize_scalar
from scipy.special import log_softmax

from shared.vision.calibration import Platt, logit

Array = NDArray[np.float64]


def fit_temperature(logits: ArrayLike, labels: ArrayLike) -> float:
    """The T for which softmax(logits / T) has the least cross-entropy.

    Logits are (n, k) with classes (n,), or (n,) of a yes or no with 0 and 1.
    """
    x, wanted = np.asarray(logits, np.float64), np.asarray(labels)
    if x.ndim == 1:
        x = np.column_stack([np.zeros_like(x), x])
    wanted = wanted.astype(np.int64)

    def loss(log_t: float) -> float:
        return -float(log_softmax(x / np.exp(log_t), axis=1)[np.arange(len(x)), wanted].mean())

    return float(np.exp(minimize_scalar(loss, bounds=(-3, 3), method="bounded").x))


def fit_platt(scores: ArrayLike, hits: ArrayLike) -> Platt:
    """Slope and offset with the least cross-entropy; the identity where hits are all alike."""
    x, y = logit(scores), np.asarray(hits, np.float64)
    if len(y) < 2 or y.min() == y.max():
        return Platt()

    def loss(knobs: Array) -> float:
        z = np.exp(knobs[0]) * x + knobs[1]
        return float((np.logaddexp(0, z) - y * z).mean())

    slope, offset = minimize(loss, np.zeros(2), method="L-BFGS-B", bounds=((-3, 3), (-10, 10))).x
    return Platt(float(np.exp(slope)), float(offset))


def reliability(scores: ArrayLike, hits: ArrayLike, bins: int = 10) -> tuple[float, list[tuple[float, float, int]]]:
    """How far scores (n,) in 0..1 are from the share of hits (n,) that is right, in bins of equal width.

    Returns:
        The expected calibration error, the mean over answers of |mean score - share right| in their bin; and mean
        score, share right and answers of each bin that holds any.
    """
    p, y = np.asarray(scores, np.float64), np.asarray(hits, np.float64)
    place = np.minimum((p * bins).astype(np.int64), bins - 1)
    some = np.flatnonzero(np.bincount(place, minlength=bins))
    means = [(float(p[place == b].mean()), float(y[place == b].mean()), int((place == b).sum())) for b in some]
    return sum(abs(score - right) * count for score, right, count in means) / max(len(p), 1), means
