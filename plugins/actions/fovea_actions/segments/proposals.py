"""Temporal proposals: the grid that BMN samples, the labels it learns from, scores, and soft NMS.

Knows intervals and numpy arrays; knows no network. Times are fractions of a video, cells count from 0.
"""

import numpy as np

MAX_SEGMENTS = 101
"""Segments that `soft_nms` takes at most, as in the published evaluation."""


def cells(length: int) -> tuple[np.ndarray, np.ndarray]:
    """Start and end cells of every proposal, start <= end, in row order."""
    return np.triu_indices(length)


def sampling_mask(length: int, samples: int = 32, per_bin: int = 3, ratio: float = 0.5) -> np.ndarray:
    """Weight of each time for each sample of each proposal (BMN, section 3.3): float32 (t, n, s, e), zero where s > e.

    A proposal from cell s to cell e is read at `samples · per_bin` evenly spaced points between s - ratio·L and e + 1 +
    ratio·L, where L = e - s + 2; a sample is the mean of `per_bin` points, a point the linear mean of its two cells.
    Left of the video a fraction is negative, as in the published code, so that a point in (-1, 0) is cell 0.
    """
    starts, ends = cells(length)
    span = ends - starts + 2.0
    low = (starts - ratio * span)[:, None]
    unit = ((ends + 1 + ratio * span)[:, None] - low) / (samples * per_bin - 1.0)
    points = low + unit * np.arange(samples * per_bin)
    floor, fraction = np.trunc(points), points - np.trunc(points)
    weights = np.zeros((len(starts), samples, length))
    rows = np.broadcast_to(np.arange(len(starts))[:, None], points.shape)
    bins = np.broadcast_to(np.arange(samples * per_bin) // per_bin, points.shape)
    for cell, weight in ((floor, 1 - fraction), (np.ceil(points), fraction)):
        inside = (cell >= 0) & (cell < length)
        np.add.at(weights, (rows[inside], bins[inside], cell[inside].astype(int)), weight[inside] / per_bin)
    mask = np.zeros((length, samples, length, length), np.float32)
    mask[:, :, starts, ends] = weights.transpose(2, 1, 0)
    return mask


def interval_iou(starts: np.ndarray, ends: np.ndarray, start: float, end: float) -> np.ndarray:
    """Intersection over union of many intervals with one."""
    overlap = np.maximum(np.minimum(ends, end) - np.maximum(starts, start), 0.0)
    union = (ends - starts) + (end - start) - overlap
    return np.asarray(np.divide(overlap, union, out=np.zeros_like(overlap), where=union > 0))


def boundary_labels(segments: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Targets of BMN for a video of `length` cells t with true segments (k, 2) in 0..1 (BMN, section 4.2).

    Returns the IoU of every proposal with its best segment (t, t), zero where start > end; and the share of each cell
    (t,) that lies in a window of three cells around a start, and around an end.
    """
    segments = np.asarray(segments, dtype=float).reshape(-1, 2)
    edges = np.arange(length + 1) / length
    starts, ends = cells(length)
    best, windows = np.zeros(len(starts)), np.zeros((2, length))
    for start, end in segments:
        best = np.maximum(best, interval_iou(edges[starts], edges[ends + 1], start, end))
        for row, centre in enumerate((start, end)):
            inside = np.minimum(edges[1:], centre + 1.5 / length) - np.maximum(edges[:-1], centre - 1.5 / length)
            windows[row] = np.maximum(windows[row], np.maximum(inside, 0) * length)
    overlaps = np.zeros((length, length))
    overlaps[starts, ends] = best
    return overlaps, windows[0], windows[1]


def score_proposals(
    confidence: np.ndarray, start: np.ndarray, end: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Every proposal that ends before the video does, with its score (BMN, section 4.4).

    From the regression and classification map (2, s, e) and the probabilities (t,) that something starts and ends in a
    cell: starts and ends in 0..1, and scores `start · end · regression · classification`.
    """
    length = len(start)
    i, j = cells(length)
    inside = j + 1 < length
    i, j = i[inside], j[inside]
    scores = start[i] * end[j + 1] * confidence[0, i, j] * confidence[1, i, j]
    return i / length, (j + 1) / length, scores


def soft_nms(
    starts: np.ndarray, ends: np.ndarray, scores: np.ndarray, alpha: float = 0.4, low: float = 0.5, high: float = 0.9
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Gaussian soft suppression: what overlaps a better segment much loses score instead of vanishing.

    Starts, ends and scores are (p,). A larger `alpha`, the width of the Gaussian, suppresses less. `low` is the IoU
    above which a segment of width 0 suppresses, `high` the same for one as long as the video. Returns starts, ends and
    scores in the order taken: at most 101. As in the published code, the last one that remains is never taken.
    """
    starts, ends, scores = (np.array(values, dtype=float) for values in (starts, ends, scores))
    left, taken = np.ones(len(scores), bool), list[tuple[float, float, float]]()
    while left.sum() > 1 and len(taken) < MAX_SEGMENTS:
        best = int(np.argmax(np.where(left, scores, -np.inf)))
        left[best] = False
        taken.append((starts[best], ends[best], scores[best]))
        iou = interval_iou(starts, ends, starts[best], ends[best])
        near = left & (iou > low + (high - low) * (ends[best] - starts[best]))
        scores[near] *= np.exp(-(iou[near] ** 2) / alpha)
    found = np.array(taken).reshape(-1, 3)
    return found[:, 0], found[:, 1], found[:, 2]


def classify_proposals(
    starts: np.ndarray, ends: np.ndarray, scores: np.ndarray, classes: np.ndarray, best: int = 2
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Proposals (p,) times the scores of a recogniser: each one as its `best` likeliest classes.

    `classes` are scores of the whole video (s,), or of each of its cells (s, t): then the mean inside a proposal
    counts. Returns starts, ends, classes and scores (p · best,), highest score first.
    """
    inside = _means(classes, starts, ends) if classes.ndim == 2 else np.tile(classes, (len(starts), 1))
    chosen = np.argsort(-inside, axis=1, kind="stable")[:, :best]
    fused = (scores[:, None] * np.take_along_axis(inside, chosen, 1)).ravel()
    order = np.argsort(-fused, kind="stable")
    repeated = (np.repeat(axis, chosen.shape[1])[order] for axis in (starts, ends))
    return *repeated, chosen.ravel()[order], fused[order]


def _means(rows: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Mean of rows (s, t) over the cells of each interval: (p, s)."""
    length = rows.shape[1]
    first = np.minimum(np.floor(starts * length + 1e-6).astype(int), length - 1)
    last = np.maximum(np.ceil(ends * length - 1e-6).astype(int), first + 1)
    means = [rows[:, i:j].mean(1, dtype=np.float64) for i, j in zip(first, last, strict=True)]
    return np.array(means).reshape(-1, len(rows))
