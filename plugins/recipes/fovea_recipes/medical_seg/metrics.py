"""Segmentation metrics as the polyp papers report them, definition for definition of their evaluation toolbox.

Knows one 8-bit prediction and one mask at a time, and how a data set is averaged (curves first, then mean or
maximum). Knows nothing about networks: what it is given is already a picture.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import convolve, distance_transform_edt

EPS = 2.2e-16

THRESHOLDS = 1 - np.arange(256) / 255
"""1 … 0 in float64 in just this form: (255 - i)/255 differs in the last bit and moves single pixels."""

Map = NDArray[np.float64]
Mask = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class ThresholdCurves:
    """Scores of one image at the 256 thresholds, each (256,)."""

    dice: Map
    iou: Map
    sensitivity: Map
    specificity: Map
    e: Map

    def summary(self) -> dict[str, float]:
        """The mean and the maximum over thresholds, under the names that papers use."""
        means = {f"mean_{name}": float(getattr(self, name).mean()) for name in self.__slots__}
        return means | {f"max_{name}": float(getattr(self, name).max()) for name in ("dice", "iou", "e")}


def segmentation_scores(prediction: NDArray[np.uint8], mask: Mask) -> dict[str, float]:
    """All metrics of one image, 0..1, by a prediction in 8 bits and its mask (h, w).

    `weighted_f` is NaN for an empty mask. `mean_dice` is the mean over 256 thresholds, not the Dice at 0.5, which is
    `dice_at_half`.
    """
    return curves(prediction, mask).summary() | _pointwise(prediction, mask)


def dataset_scores(pairs: Iterable[tuple[NDArray[np.uint8], Mask]]) -> dict[str, float]:
    """All metrics of pairs as those of `segmentation_scores`, at least one.

    Curves are averaged over images before their mean and maximum are taken; images with an empty mask don't count for
    `weighted_f`.
    """
    drawn, points = [], []
    for prediction, mask in pairs:
        drawn.append(curves(prediction, mask))
        points.append(_pointwise(prediction, mask))
    mean = ThresholdCurves(*(np.mean([getattr(c, name) for c in drawn], axis=0) for name in ThresholdCurves.__slots__))
    averages = {name: _mean_of_known([point[name] for point in points]) for name in points[0]}
    return mean.summary() | averages


def curves(prediction: NDArray[np.uint8], mask: Mask) -> ThresholdCurves:
    """Scores at every threshold t of b = (p >= t), p being the prediction stretched to 0..1.

    All four counting scores are 0 where nothing is hit (TP = 0), also for a true negative image.
    """
    p = _stretched(prediction)
    tp, fp = _at_least(p[mask]), _at_least(p[~mask])
    positives, negatives = float(mask.sum()), float((~mask).sum())
    fn, tn = positives - tp, negatives - fp
    hit = tp > 0
    return ThresholdCurves(
        dice=_ratio(2 * tp, positives + tp + fp, hit),
        iou=_ratio(tp, positives + fp, hit),
        sensitivity=_ratio(tp, positives, hit),
        specificity=_ratio(tn, negatives, hit),
        e=_e_measure(tp, fp, fn, tn),
    )


def _stretched(prediction: NDArray[np.uint8]) -> Map:
    """The prediction in 0..1, min-max normalised unless it is constant."""
    p = prediction.astype(np.float64) / 255
    low, high = p.min(), p.max()
    return np.asarray((p - low) / (high - low) if high > low else p)


def _at_least(values: Map) -> Map:
    """How many values reach each threshold (256,)."""
    return np.asarray(len(values) - np.searchsorted(np.sort(values), THRESHOLDS), dtype=np.float64)


def _ratio(part: Map, whole: Map | float, where: NDArray[np.bool_]) -> Map:
    """Part / whole where allowed and possible, else 0."""
    whole = np.broadcast_to(whole, part.shape)
    return np.asarray(np.divide(part, whole, out=np.zeros_like(part), where=where & (whole > 0)))


def _e_measure(tp: Map, fp: Map, fn: Map, tn: Map) -> Map:
    """Enhanced alignment (256,): the maps are binary, so every pixel is one of four cases and counts suffice."""
    total = (tp + fp + fn + tn)[0]
    if (tp + fn)[0] == 0:
        return np.asarray(tn / (total - 1 + EPS))
    if (fp + tn)[0] == 0:
        return np.asarray(tp / (total - 1 + EPS))
    found, truth = (tp + fp) / total, (tp + fn) / total
    aligned = np.zeros_like(tp)
    for count, b, g in ((tp, 1, 1), (fp, 1, 0), (fn, 0, 1), (tn, 0, 0)):
        x, y = b - found, g - truth
        aligned += count * (1 + 2 * x * y / (x * x + y * y + EPS)) ** 2 / 4
    return np.asarray(aligned / (total - 1 + EPS))


def _pointwise(prediction: NDArray[np.uint8], mask: Mask) -> dict[str, float]:
    """The metrics that have no threshold, or a fixed one."""
    p, half = _stretched(prediction), prediction >= 128
    both, found, truth = int((half & mask).sum()), int(half.sum()), int(mask.sum())
    return {
        "s_measure": _s_measure(p, mask),
        "mae": float(np.abs(p - mask).mean()),
        "weighted_f": _weighted_f(p, mask),
        "dice_at_half": 2 * both / max(found + truth, 1),
        "iou_at_half": both / max(found + truth - both, 1),
    }


def _s_measure(p: Map, mask: Mask) -> float:
    """Structure measure: half by object, half by region."""
    share = float(mask.mean())
    if share == 0:
        return 1 - float(p.mean())
    if share == 1:
        return float(p.mean())
    by_object = share * _object_score(p[mask]) + (1 - share) * _object_score(1 - p[~mask])
    return max(0.0, 0.5 * by_object + 0.5 * _region_score(p, mask))


def _object_score(values: Map) -> float:
    """2m / (m² + 1 + σ): how high and how even the prediction is on one side of the mask."""
    mean = float(values.mean())
    spread = float(values.std(ddof=1)) if len(values) > 1 else 0.0
    return 2 * mean / (mean * mean + 1 + spread + EPS)


def _region_score(p: Map, mask: Mask) -> float:
    """Similarity in the four blocks around the mask's centroid, weighted by area."""
    rows, columns = np.nonzero(mask)
    y, x = int(rows.mean() + 1.5), int(columns.mean() + 1.5)  # 1-based, rounded half up
    g = mask.astype(np.float64)
    blocks = (
        (slice(0, y), slice(0, x)),
        (slice(0, y), slice(x, None)),
        (slice(y, None), slice(0, x)),
        (slice(y, None), slice(x, None)),
    )
    return sum(_block_similarity(p[block], g[block]) * p[block].size / p.size for block in blocks)


def _block_similarity(p: Map, g: Map) -> float:
    """Structural similarity of one block; an empty block counts for nothing."""
    if p.size == 0:
        return 0.0
    m, n = float(p.mean()), float(g.mean())
    free = p.size - 1 + EPS
    variances = float(((p - m) ** 2).sum() + ((g - n) ** 2).sum()) / free
    covariance = float(((p - m) * (g - n)).sum()) / free
    top, bottom = 4 * m * n * covariance, (m * m + n * n) * variances
    if top != 0:
        return top / (bottom + EPS)
    return 1.0 if bottom == 0 else 0.0


def _weighted_f(p: Map, mask: Mask) -> float:
    """Weighted F-measure (β = 1): errors near the polyp weigh more, errors inside it are smoothed."""
    if not mask.any():
        return float("nan")
    error = np.abs(p - mask)
    distance, nearest = distance_transform_edt(~mask, return_indices=True)
    smooth = convolve(error[tuple(nearest)], _gaussian(), mode="constant", cval=0)
    least = np.where(mask & (smooth < error), smooth, error)
    weighted = least * np.where(mask, 1, 2 - np.exp(np.log(0.5) / 5 * distance))
    missed, false_alarms = weighted[mask], float(weighted[~mask].sum())
    hits = float(mask.sum()) - float(missed.sum())
    recall, precision = 1 - float(missed.mean()), hits / (EPS + hits + false_alarms)
    return 2 * recall * precision / (EPS + recall + precision)


def _gaussian(side: int = 7, sigma: float = 5) -> Map:
    """A normalised Gaussian window (side, side)."""
    axis = np.arange(side) - side // 2
    window = np.exp(-(axis[:, None] ** 2 + axis**2) / (2 * sigma**2))
    return np.asarray(window / window.sum())


def _mean_of_known(values: list[float]) -> float:
    known = [value for value in values if not np.isnan(value)]
    return float(np.mean(known)) if known else float("nan")
