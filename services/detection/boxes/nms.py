"""Non-maximum suppression: of boxes that overlap, the best stays.

Knows predictions as a network gives them (centre, size, scores); knows no picture. Boxes of different classes are
kept apart by moving each class away from the others, in float32, as published code does.
"""

from collections.abc import Sequence

import numpy as np

CLASS_OFFSET = 7680
"""Pixels between two classes; no input is as large."""

MAX_CANDIDATES = 30_000
"""Best candidates of a picture that are looked at."""


def nms(
    predictions: np.ndarray,
    *,
    confidence: float = 0.25,
    iou: float = 0.45,
    max_detections: int = 300,
    classes: Sequence[int] | None = None,
    agnostic: bool = False,
    multi_label: bool = False,
) -> list[np.ndarray]:
    """The boxes that stay, of every picture, best first.

    Args:
        predictions: (n, 4 + classes, a): centre x, centre y, width, height, scores.
        confidence: Only cells whose best score is higher.
        iou: Of two boxes whose IoU is higher, the better stays.
        max_detections: Most boxes of a picture.
        classes: Only these ids; None means all.
        agnostic: Boxes of different classes suppress each other too.
        multi_label: A cell may hold one box per class above `confidence`, instead of its best class alone.

    Returns:
        Per picture (m, 6): x1, y1, x2, y2, score, class.
    """
    found = []
    for picture in np.asarray(predictions):  # `decode` gives a tensor
        rows = _candidates(picture, confidence, classes, multi_label=multi_label)
        order = greedy_nms(
            rows[:, :4] + rows[:, 5:] * (0 if agnostic else CLASS_OFFSET), rows[:, 4], iou, max_detections
        )
        found.append(rows[order])
    return found


def _candidates(
    picture: np.ndarray, confidence: float, classes: Sequence[int] | None, *, multi_label: bool
) -> np.ndarray:
    """Rows (m, 6) above `confidence`, of one picture (4 + classes, a)."""
    centred, scores = picture[:4].T, picture[4:].T
    cell, kind = np.nonzero(scores > confidence)
    if not multi_label:
        cell = np.flatnonzero(scores.max(axis=1, initial=0) > confidence)
        kind = scores[cell].argmax(axis=1) if len(cell) else np.empty(0, np.int64)
    if classes is not None:
        wanted = np.isin(kind, np.array(classes, np.int64))
        cell, kind = cell[wanted], kind[wanted]
    centre, half = centred[cell, :2], centred[cell, 2:] / 2
    score = scores[cell, kind][:, None]
    return np.concatenate([centre - half, centre + half, score, kind[:, None].astype(picture.dtype)], axis=1)


def greedy_nms(boxes: np.ndarray, scores: np.ndarray, iou: float, most: int) -> np.ndarray:
    """Indices of the boxes (m, 4) that stay, best first; of equal scores the earlier comes first."""
    order = np.argsort(-scores, kind="stable")[:MAX_CANDIDATES]
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    stay: list[int] = []
    while len(order) and len(stay) < most:
        best, order = order[0], order[1:]
        stay.append(int(best))
        low = np.maximum(boxes[best, :2], boxes[order, :2])
        high = np.minimum(boxes[best, 2:], boxes[order, 2:])
        shared = np.clip(high - low, 0, None).prod(axis=1)
        with np.errstate(invalid="ignore"):  # two boxes without any area are 0/0: no overlap
            order = order[~(shared / (area[best] + area[order] - shared) > iou)]
    return np.array(stay, np.int64)
