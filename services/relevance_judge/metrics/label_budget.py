"""Label budget: how many units people must label for an interval this wide, with the judge's help and without.

From a pilot: how much people's values vary, and how well the judge predicts them. Variances are those of
prediction-powered inference (see `prediction_powered`).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from pydantic import BaseModel, Field

from fovea.errors import InvalidOption
from shared.lazy_module import LazyModule

stats = LazyModule("scipy.stats")

MIN_PILOT = 3


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
    if len(y) != len(f) or len(y) < MIN_PILOT:
        raise InvalidOption(f"The pilot has {len(y)} labelled units; {MIN_PILOT} are the least.", field="human")
    if total < len(y):
        raise InvalidOption(f"There are {total} units in all, and {len(y)} in the pilot.", field="total")
    moments = np.cov(y, f)
    variance, spread, shared = float(moments[0, 0]), float(moments[1, 1]), float(moments[0, 1])

    def half(n: int, *, helped: bool) -> float:
        rest = total - n
        gain = max(shared, 0.0) ** 2 / spread / (1 + n / rest) if helped and rest > 0 and spread > 0 else 0.0
        return float(stats.t.ppf(0.5 + confidence / 2, n - 1) * math.sqrt(max(variance - gain, 0.0) / n))

    steps = sorted({min(max(round(total * share), 2), total) for share in (0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0)})
    return LabelBudget(
        with_judge=_smallest(lambda n: half(n, helped=True), total, half_width),
        without_judge=_smallest(lambda n: half(n, helped=False), total, half_width),
        correlation=float(shared / math.sqrt(variance * spread)) if variance * spread > 0 else 0.0,
        deviation=math.sqrt(variance),
        curve=[(n, half(n, helped=True), half(n, helped=False)) for n in steps],
    )


def _smallest(half: Any, total: int, wished: float) -> int | None:
    """The fewest labelled units, 2 to `total`, from which on the half-width is at most the wished one."""
    low, high = 2, total
    if total < 2 or half(total) > wished:
        return next((n for n in range(2, total + 1) if half(n) <= wished), None) if total <= 1000 else None
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if half(middle) <= wished else (middle + 1, high)
    return low
