"""How good boxes are: average precision, fixed for every detector of this service (section 7 of the description).

Knows rows of ground truth and of detections; knows no model.
"""

from collections.abc import Callable, Sequence

import numpy as np

COCO = tuple(np.round(np.arange(0.5, 0.951, 0.05), 2).tolist())
"""Thresholds of mAP@.5:.95."""

RECALLS = 101


def box_average_precision(
    truth: Sequence[np.ndarray], found: Sequence[np.ndarray], thresholds: Sequence[float] = COCO
) -> np.ndarray:
    """Average precision (class, threshold) of the classes that the truth holds, in order of their ids.

    Args:
        truth: Per picture (m, 5): class, x1, y1, x2, y2.
        found: Per picture (n, 6): x1, y1, x2, y2, confidence, class.
        thresholds: Least IoU of a hit.
    """
    return _resampled(truth, found, thresholds)(np.arange(len(truth)))


def box_scores(truth: Sequence[np.ndarray], found: Sequence[np.ndarray], names: Sequence[str]) -> dict[str, float]:
    """The numbers of a Card: `map50`, `map50_95`, and `ap50_<name>` of each class that the truth holds."""
    precision = box_average_precision(truth, found)
    present = np.unique(np.concatenate([rows[:, 0] for rows in truth])).astype(int)
    scores = {"map50": float(precision[:, 0].mean()), "map50_95": float(precision.mean())}
    return scores | {f"ap50_{names[kind]}": float(row[0]) for kind, row in zip(present, precision, strict=True)}


def resampled_map50(truth: Sequence[np.ndarray], found: Sequence[np.ndarray]) -> Callable[[np.ndarray], float]:
    """mAP@.5 of the pictures with given indices, some of them several times: hits are found once, for a bootstrap."""
    precision = _resampled(truth, found, (0.5,))

    def score(indices: np.ndarray) -> float:
        areas = precision(indices)
        return float(areas.mean()) if len(areas) else float("nan")

    return score


def _resampled(
    truth: Sequence[np.ndarray], found: Sequence[np.ndarray], thresholds: Sequence[float]
) -> Callable[[np.ndarray], np.ndarray]:
    """Average precision (class, threshold) of the pictures with given indices."""
    levels = np.asarray(thresholds, np.float64)
    pictures = [_rows(t, f) for t, f in zip(truth, found, strict=True)]
    hits = [box_hits(t, f, levels) for t, f in pictures]

    def precision(indices: np.ndarray) -> np.ndarray:
        right = np.concatenate([np.zeros((0, len(levels)), bool), *(hits[i] for i in indices)])
        rows = np.concatenate([np.zeros((0, 6)), *(pictures[i][1] for i in indices)])
        kinds = np.concatenate([np.zeros(0), *(pictures[i][0][:, 0] for i in indices)])
        order = np.argsort(-rows[:, 4], kind="stable")
        right, labels = right[order], rows[order, 5]
        present, counts = np.unique(kinds, return_counts=True)
        areas = [_precision(right[labels == kind], count) for kind, count in zip(present, counts, strict=True)]
        return np.array(areas).reshape(len(present), len(levels))

    return precision


def _rows(truth: np.ndarray, found: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both as arrays of rows, the detections by confidence."""
    t, f = np.asarray(truth, np.float64).reshape(-1, 5), np.asarray(found, np.float64).reshape(-1, 6)
    return t, f[np.argsort(-f[:, 4], kind="stable")]


def box_hits(truth: np.ndarray, found: np.ndarray, thresholds: Sequence[float] | np.ndarray) -> np.ndarray:
    """Whether each detection is a hit (n, threshold): the first on its best object, and no second choice.

    Rows are those of `box_average_precision`, the detections best first.
    """
    hits = np.zeros((len(found), len(thresholds)), bool)
    if not len(truth) or not len(found):
        return hits
    iou = _iou(found[:, :4], truth[:, 1:]) * (found[:, 5:] == truth[None, :, 0])
    best, value = iou.argmax(axis=1), iou.max(axis=1)
    for column, threshold in enumerate(thresholds):
        able = np.flatnonzero(value >= threshold)
        _, first = np.unique(best[able], return_index=True)
        hits[able[first], column] = True
    return hits


def _iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """IoU (n, m) of all pairs of corners."""
    low, high = np.maximum(a[:, None, :2], b[:, :2]), np.minimum(a[:, None, 2:], b[:, 2:])
    shared = np.clip(high - low, 0, None).prod(axis=2)
    areas = [(box[:, 2:] - box[:, :2]).prod(axis=1) for box in (a, b)]
    return np.asarray(shared / np.maximum(areas[0][:, None] + areas[1] - shared, 1e-12))


def _precision(hits: np.ndarray, count: int) -> np.ndarray:
    """Area under precision over recall per threshold, of one class' hits (n, threshold) by confidence."""
    grid = np.linspace(0, 1, RECALLS)
    areas = np.zeros(hits.shape[1])
    for column in range(hits.shape[1] if len(hits) else 0):
        right = np.cumsum(hits[:, column])
        recall = np.concatenate([[0], right / count, [1]])
        precision = np.concatenate([[1], right / np.arange(1, len(hits) + 1), [0]])
        falling = np.maximum.accumulate(precision[::-1])[::-1]
        areas[column] = np.trapezoid(np.interp(grid, recall, falling), grid)
    return areas
