"""How good segments of time are: temporal mAP as ActivityNet computes it, and recall of the best proposals.

Knows rows of ground truth and of predictions; knows no model.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from fovea_actions.segments.proposals import interval_iou

ACTIVITYNET = tuple(np.round(np.arange(0.5, 0.951, 0.05), 2).tolist())
"""Thresholds of the ActivityNet challenge."""

Row = Sequence[Any]
"""video, start, end, label; predictions also a score."""


def temporal_average_precision(truth: Sequence[Row], found: Sequence[Row], thresholds: Sequence[float]) -> np.ndarray:
    """Average precision (class in order of label, threshold), as the ActivityNet evaluation computes it.

    Truth is rows (video, start, end, label), found are the same with a score; classes that the truth lacks are ignored.
    A hit overlaps in time (IoU) by a threshold at least.
    """
    videos = list(dict.fromkeys(row[0] for row in (*truth, *found)))
    return resampled_precision(truth, found, thresholds)(np.array(videos, object))


def average_recall(
    truth: Sequence[Row], found: Sequence[Row], count: int, thresholds: Sequence[float] = ACTIVITYNET
) -> float:
    """AR@AN: mean over thresholds of the share of true segments that the best `count` proposals of a video reach.

    Rows begin with video, start and end; those that were found end with their score, and labels are ignored.
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


def resampled_precision(
    truth: Sequence[Row], found: Sequence[Row], thresholds: Sequence[float]
) -> Callable[[np.ndarray], np.ndarray]:
    """`temporal_average_precision` (class, threshold) of given videos, some of them several times, for a bootstrap."""
    levels = np.asarray(thresholds, float)
    there, ranked = _by_place(truth), _by_place(sorted(found, key=lambda row: -row[4]))
    hits = {place: _hits(rows, ranked.get(place, []), levels) for place, rows in there.items()}
    others = {place: np.zeros((len(levels), len(rows)), bool) for place, rows in ranked.items()}
    scores = {place: np.array([row[4] for row in rows], float) for place, rows in ranked.items()}
    labels = sorted({label for _, label in there})

    def precision(videos: np.ndarray) -> np.ndarray:
        areas = []
        for label in labels:
            places = [(video, label) for video in videos.tolist()]
            count = sum(len(there.get(place, ())) for place in places)
            some = [place for place in places if place in ranked]
            order = np.argsort(-np.concatenate([np.zeros(0), *(scores[place] for place in some)]), kind="stable")
            right = np.hstack([np.zeros((len(levels), 0), bool), *(hits.get(p, others[p]) for p in some)])[:, order]
            if count:
                areas.append([_area(row, count) for row in right])
        return np.array(areas).reshape(-1, len(levels))

    return precision


def resampled_recall(
    truth: Sequence[Row], found: Sequence[Row], count: int, thresholds: Sequence[float] = ACTIVITYNET
) -> Callable[[np.ndarray], float]:
    """`average_recall` of given videos, some of them several times: shares are found once."""
    proposals = defaultdict[int, list[Row]](list)
    segments = defaultdict[int, list[Row]](list)
    for part, rows in ((proposals, found), (segments, truth)):
        for row in rows:
            part[row[0]].append(row)
    shares = {video: average_recall(rows, proposals[video], count, thresholds) for video, rows in segments.items()}

    def recall(videos: np.ndarray) -> float:
        some = [video for video in videos.tolist() if video in shares]
        weights = [len(segments[video]) for video in some]
        return float(np.average([shares[video] for video in some], weights=weights)) if some else 0.0

    return recall


def _by_place(rows: Sequence[Row]) -> dict[tuple[int, Any], list[Row]]:
    """Rows by video and label."""
    held = defaultdict[tuple[int, Any], list[Row]](list)
    for row in rows:
        held[row[0], row[3]].append(row)
    return dict(held)


def _hits(truth: Sequence[Row], ranked: Sequence[Row], levels: np.ndarray) -> np.ndarray:
    """Whether each prediction (threshold, n) of one video and class, best first, is a hit."""
    true = np.array([row[1:3] for row in truth], float)
    taken, hits = np.zeros((len(levels), len(true)), bool), np.zeros((len(levels), len(ranked)), bool)
    for index, row in enumerate(ranked):
        hits[:, index] = _take(interval_iou(true[:, 0], true[:, 1], row[1], row[2]), taken, levels)
    return hits


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
