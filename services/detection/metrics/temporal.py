"""How good segments of time are: temporal mAP as ActivityNet computes it, and recall of the best proposals.

Knows rows of ground truth and of predictions; knows no model.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np

from services.detection.segments.proposals import interval_iou

__all__ = ["average_recall", "temporal_average_precision"]

ACTIVITYNET = tuple(np.round(np.arange(0.5, 0.951, 0.05), 2).tolist())
"""Thresholds of the ActivityNet challenge."""

Row = Sequence[Any]
"""video, start, end, label; predictions also a score."""


def temporal_average_precision(truth: Sequence[Row], found: Sequence[Row], thresholds: Sequence[float]) -> np.ndarray:
    """Average precision per class and threshold, as the ActivityNet evaluation computes it.

    Args:
        truth: Rows (video, start, end, label).
        found: Rows (video, start, end, label, score); classes that the truth lacks are ignored.
        thresholds: Least IoU over time of a hit.

    Returns:
        Array [class in order of label, threshold].
    """
    labels = sorted({row[3] for row in truth})
    return np.array(
        [
            _class_precision(
                [row for row in truth if row[3] == label],
                [row for row in found if row[3] == label],
                np.asarray(thresholds, float),
            )
            for label in labels
        ]
    )


def average_recall(
    truth: Sequence[Row], found: Sequence[Row], count: int, thresholds: Sequence[float] = ACTIVITYNET
) -> float:
    """AR@AN: mean over thresholds of the share of true segments that the best `count` proposals of a video reach.

    Args:
        truth: Rows (video, start, end, …).
        found: Rows (video, start, end, …, score), the score last; labels are ignored.
        count: Proposals per video.
        thresholds: Least IoU over time.
    """
    proposals: dict[Any, list[tuple[float, float, float]]] = defaultdict(list)
    for row in found:
        proposals[row[0]].append((row[-1], row[1], row[2]))
    best = []
    for row in truth:
        kept = np.array(sorted(proposals[row[0]], key=lambda p: -p[0])[:count]).reshape(-1, 3)
        best.append(interval_iou(kept[:, 1], kept[:, 2], row[1], row[2]).max(initial=0.0))
    reached = np.asarray(best)[:, None] >= np.asarray(thresholds)
    return float(reached.mean()) if reached.size else 0.0


def _class_precision(truth: Sequence[Row], found: Sequence[Row], thresholds: np.ndarray) -> np.ndarray:
    """Average precision (threshold,) of one class."""
    ranked = sorted(found, key=lambda row: -row[4])
    segments: dict[Any, np.ndarray] = {
        video: np.array([row[1:3] for row in truth if row[0] == video], float) for video in {row[0] for row in truth}
    }
    taken = {video: np.zeros((len(thresholds), len(rows)), bool) for video, rows in segments.items()}
    hits = np.zeros((len(thresholds), len(ranked)), bool)
    for index, (video, start, end, *_) in enumerate(ranked):
        if (true := segments.get(video)) is not None:
            iou = interval_iou(true[:, 0], true[:, 1], start, end)
            hits[:, index] = _take(iou, taken[video], thresholds)
    return np.array([_area(row, len(truth)) for row in hits])


def _take(iou: np.ndarray, taken: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """Whether a prediction hits at each threshold: it takes the best true segment that is still free."""
    hit = np.zeros(len(thresholds), bool)
    order = np.argsort(-iou, kind="stable")
    for row, threshold in enumerate(thresholds):
        for segment in order:
            if iou[segment] < threshold:
                break
            if not taken[row, segment]:
                taken[row, segment] = hit[row] = True
                break
    return hit


def _area(hits: np.ndarray, positives: int) -> float:
    """Area under the envelope of precision over recall."""
    true = np.cumsum(hits)
    precision = np.concatenate(([0.0], true / np.arange(1, len(hits) + 1), [0.0]))
    recall = np.concatenate(([0.0], true / positives, [1.0]))
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    changes = np.flatnonzero(recall[1:] != recall[:-1]) + 1
    return float(((recall[changes] - recall[changes - 1]) * envelope[changes]).sum())
