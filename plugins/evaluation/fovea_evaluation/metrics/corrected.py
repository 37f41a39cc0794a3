"""Prediction-powered inference: a mean over everything a judge labelled, corrected by the part that people labelled.

Angelopoulos et al. (2023, arXiv:2301.09633) with the tuned weight λ of PPI++ (arXiv:2311.01453): the estimate is
λ·mean(judge, unlabelled) + mean(human − λ·judge, labelled). Whatever the judge is worth, it is right on
average; a judge that is worth nothing gets λ = 0, and what remains is the human sample alone.
"""

import bisect
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, Field

from fovea.errors import InvalidOption
from shared.lazy_module import LazyModule

stats = LazyModule("scipy.stats")

Floats = NDArray[np.float64]

MIN_LABELLED = 3


@dataclass(frozen=True)
class MeanEstimate:
    """A mean with its interval; `weight` is λ, how much of the judge went into it."""

    mean: float
    interval: tuple[float, float]
    error: float
    weight: float
    labelled: int
    unlabelled: int


def correct_mean(
    human: Any,
    judge: Any,
    unlabelled: Any,
    *,
    confidence: float = 0.95,
    weight: float | None = None,
    small_sample: bool = True,
) -> MeanEstimate:
    """Estimate a mean from values [n] by people, the judge's of the same units [n], and its values [N] of all others.

    Units are independent, so whole queries where pairs of one query hang together. The weight is λ; left out, the one
    of least variance, between 0 and 1. `small_sample` takes Student's t of n − 1 degrees instead of the paper's normal
    quantile. Raises InvalidOption for fewer than three labelled units, or unequal lengths.
    """
    y, f, rest = (np.asarray(values, float) for values in (human, judge, unlabelled))
    if len(y) != len(f) or len(y) < MIN_LABELLED:
        raise InvalidOption(f"{len(y)} units are labelled by people; {MIN_LABELLED} are the least.", field="human")
    if not len(rest):
        return human_mean(y, confidence=confidence, small_sample=small_sample)
    used = tune_weight(y, f, rest) if weight is None else weight
    mean = used * float(rest.mean()) + float((y - used * f).mean())
    error = float(np.sqrt(used**2 * rest.var() / len(rest) + (y - used * f).var() / len(y)))
    return _estimate(mean, error, used, len(y), len(rest), confidence, small_sample=small_sample)


def human_mean(human: Any, *, confidence: float = 0.95, small_sample: bool = True) -> MeanEstimate:
    """The classical estimate, from the human values alone."""
    y = np.asarray(human, float)
    error = float(y.std() / np.sqrt(len(y)))
    return _estimate(float(y.mean()), error, 0.0, len(y), 0, confidence, small_sample=small_sample)


def tune_weight(human: Floats, judge: Floats, unlabelled: Floats) -> float:
    """λ of least variance: cov(human, judge) / ((1 + n/N) · var(judge)), kept within 0 and 1."""
    n, rest = len(human), len(unlabelled)
    spread = float(np.concatenate([judge, unlabelled]).var(ddof=1)) * (1 + n / rest)
    shared = float(((human - human.mean()) * (judge - judge.mean())).mean())
    return min(max(shared / spread, 0.0), 1.0) if spread > 0 else 0.0


def _estimate(
    mean: float, error: float, weight: float, labelled: int, unlabelled: int, confidence: float, *, small_sample: bool
) -> MeanEstimate:
    tail = 0.5 + confidence / 2
    # The error divides by n, as the paper does; with Student's t, by n − 1, which is unbiased.
    exact = error * np.sqrt(labelled / (labelled - 1)) if small_sample else error
    width = float((stats.t.ppf(tail, labelled - 1) if small_sample else stats.norm.ppf(tail)) * exact)
    return MeanEstimate(mean, (mean - width, mean + width), float(exact), weight, labelled, unlabelled)


class LabelBudget(BaseModel):
    """Units that people must label for the wished half-width; null where all of them are not enough."""

    with_judge: int | None = Field(description="Together with the judge's labels of all units.")
    without_judge: int | None = Field(description="From the human labels alone.")
    correlation: float = Field(description="Of human and judge scores in the pilot.")
    deviation: float = Field(description="Standard deviation over units.")
    curve: list[tuple[int, float, float]] = Field(description="Labelled units, half-width with the judge, without.")


def plan_labels(human: Any, judge: Any, *, total: int, half_width: float, confidence: float = 0.95) -> LabelBudget:
    """Plan how many units to label, from a pilot of values [n] by people and by the judge.

    The judge labels all `total` units, the pilot's among them; `half_width` is half the width that the mean's interval
    shall have. Raises InvalidOption for a pilot of fewer than three units, or of more than there are.
    """
    y, f = np.asarray(human, float), np.asarray(judge, float)
    if len(y) != len(f) or len(y) < MIN_LABELLED:
        raise InvalidOption(f"The pilot has {len(y)} labelled units; {MIN_LABELLED} are the least.", field="human")
    if total < len(y):
        raise InvalidOption(f"There are {total} units in all, and {len(y)} in the pilot.", field="total")
    moments = np.cov(y, f)
    variance, spread, shared = float(moments[0, 0]), float(moments[1, 1]), float(moments[0, 1])

    def half(n: int, *, helped: bool) -> float:
        rest = total - n
        whole = spread * (1 + n / rest) if helped and rest > 0 else 0.0
        weight = min(max(shared / whole, 0.0), 1.0) if whole > 0 else 0.0  # as `tune_weight` keeps it
        left = variance - weight * (2 * shared - weight * whole)
        return float(stats.t.ppf(0.5 + confidence / 2, n - 1) * math.sqrt(max(left, 0.0) / n))

    steps = sorted({min(max(round(total * share), 2), total) for share in (0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0)})
    return LabelBudget(
        with_judge=_smallest(lambda n: half(n, helped=True), total, half_width),
        without_judge=_smallest(lambda n: half(n, helped=False), total, half_width),
        correlation=float(shared / math.sqrt(variance * spread)) if variance * spread > 0 else 0.0,
        deviation=math.sqrt(variance),
        curve=[(n, half(n, helped=True), half(n, helped=False)) for n in steps],
    )


def _smallest(half: Callable[[int], float], total: int, wished: float) -> int | None:
    """The fewest labelled units, 2 to `total`, from which on the half-width is at most the wished one."""
    if total < 2 or half(total) > wished:
        return next((n for n in range(2, total + 1) if half(n) <= wished), None) if total <= 1000 else None
    return 2 + bisect.bisect_left(range(2, total), True, key=lambda n: half(n) <= wished)
