"""Scores of detections that mean what they say, and the score from which on detections are counted.

Knows rows of truth and of detections; knows no network.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fovea_recipes.detection.metrics.boxes import box_hits
from fovea_recipes.training.calibrate import ServingFacts, reliability_facts
from fovea_recipes.training.intervals import mean_interval
from fovea_recipes.training.score_calibration import fit_platt
from shared.vision.calibration import Platt

Rows = NDArray[np.float32]

LEAST = 0.02
"""Score below which nothing is looked at."""

CANDIDATES = tuple(np.round(np.arange(0.05, 0.951, 0.025), 3).tolist())
"""Calibrated scores that are tried."""


def choose_scores(
    truth: Sequence[Rows], found: Sequence[Rows], names: Sequence[str]
) -> tuple[ServingFacts, dict[str, tuple[float, float]]]:
    """Fit slope, offset and least score by every second picture; measure them on the others.

    Truth is class, x1, y1, x2, y2 (m, 5) per picture; found are x1, y1, x2, y2, score, class (n, 6) after suppression,
    the best first. A single picture is used for both. Also returns the intervals of the metrics.
    """
    platt, confidence = _choose(truth[::2], found[::2])
    truth, found = truth[1::2] or truth, found[1::2] or found
    raw, sure = np.concatenate([rows[:, 4] for rows in found]), [platt(rows[:, 4]) for rows in found]
    facts = reliability_facts(raw, np.concatenate(sure), _hits(truth, found))
    shown = [rows[each > confidence] for rows, each in zip(found, sure, strict=True)]
    errors, intervals = count_errors(truth, shown, names)
    constants = {"slope": platt.slope, "offset": platt.offset, "confidence": confidence}
    return facts | ServingFacts(constants, metrics=errors), intervals


def count_errors(
    truth: Sequence[Rows], found: Sequence[Rows], names: Sequence[str]
) -> tuple[dict[str, float], dict[str, tuple[float, float]]]:
    """How far counts are off, of each class and of all together, over pictures where any is there.

    `count_error_<name>` is the mean of |found - there| / there, `count_median_<name>` its median, and
    `count_total_<name>` how far the sums over all pictures are apart, as a share of what is there.
    """
    errors, intervals = dict[str, float](), dict[str, tuple[float, float]]()
    for kind, name in [*enumerate(names), (None, "all")]:
        there, seen = _numbers(truth, 0, kind), _numbers(found, 5, kind)
        some = there > 0
        if some.any():
            off = np.abs(seen - there)[some] / there[some]
            errors[f"count_error_{name}"] = float(off.mean())
            errors[f"count_median_{name}"] = float(np.median(off))
            errors[f"count_total_{name}"] = float((seen.sum() - there.sum()) / there.sum())
            intervals[f"count_error_{name}"] = mean_interval(off)
    return errors, intervals


def _choose(truth: Sequence[Rows], found: Sequence[Rows]) -> tuple[Platt, float]:
    """Calibration of the scores, and the calibrated score at which counts are least wrong."""
    platt = fit_platt(np.concatenate([rows[:, 4] for rows in found]), _hits(truth, found))
    sure, there = [platt(rows[:, 4]) for rows in found], _numbers(truth, 0, None)
    wrong = [
        np.abs(np.array([(each > least).sum() for each in sure]) - there).sum() / max(there.sum(), 1)
        for least in CANDIDATES
    ]
    return platt, float(CANDIDATES[int(np.argmin(wrong))])


def _hits(truth: Sequence[Rows], found: Sequence[Rows]) -> NDArray[np.bool_]:
    """Which detections of all pictures are right."""
    return np.concatenate([box_hits(t, f, (0.5,))[:, 0] for t, f in zip(truth, found, strict=True)])


def _numbers(pictures: Sequence[Rows], column: int, kind: int | None) -> NDArray[np.int64]:
    return np.array([len(rows) if kind is None else int((rows[:, column] == kind).sum()) for rows in pictures])
