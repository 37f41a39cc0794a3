"""Large pictures in slices: where the slices lie, and how boxes from all of them become one list again.

An object on a border is seen by several slices, in each of them in part. Parts of one object are joined, then whole
doubles are suppressed. Knows boxes and sides; knows no picture and no network.
"""

from dataclasses import dataclass

import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from services.detection.boxes.nms import CLASS_OFFSET, greedy_nms

BORDER_PIXELS = 3.0
"""Pixels from a border within which a box counts as cut by it."""

SAME_OBJECT_SHARE = 0.6
"""Share of the smaller box inside the larger from which a cut box and another one are the same object."""

HALVES_OVERLAP = 0.5
"""Overlap along a border from which two cut boxes are halves of one object."""

MAX_MERGED = 3000
"""Best boxes that are compared with each other."""
COMPARED_AT_ONCE = 100  # boxes with all others: the memory for one step grows with it


@dataclass(frozen=True, slots=True)
class Slice:
    """A rectangle of the original: x1, y1, x2, y2 in pixels, the last two just outside."""

    x1: int
    y1: int
    x2: int
    y2: int


def make_slices(height: int, width: int, side: int, overlap: float) -> list[Slice]:
    """Squares of `side` that cover a picture, each sharing at least `overlap` of itself with the next one.

    None where one of them covers the picture.
    """
    if max(height, width) <= side:
        return []
    across, down = (_starts(length, side, overlap) for length in (width, height))
    return [Slice(x, y, min(x + side, width), min(y + side, height)) for y in down for x in across]


def _starts(length: int, side: int, overlap: float) -> list[int]:
    """Evenly spread starts, the last slice ending where the picture does."""
    if length <= side:
        return [0]
    step = max(side * (1 - overlap), 1)
    count = int(np.ceil((length - side) / step)) + 1
    return [round(i * (length - side) / (count - 1)) for i in range(count)]


def merge_slices(
    rows: np.ndarray,
    sources: np.ndarray,
    parts: list[Slice],
    shape: tuple[int, int],
    *,
    iou: float,
    agnostic: bool,
    most: int,
) -> np.ndarray:
    """One list of boxes from those of all slices and of the whole picture.

    `rows` (m, 6) are x1, y1, x2, y2 (pixels of the original), score and class of each box, `sources` its index into
    `parts`, -1 where the whole picture was searched; `shape` is the original's height and width. Of two boxes that
    overlap by more than `iou` the better stays; `agnostic` boxes of different classes suppress each other, too; `most`
    boxes stay.
    """
    best = np.argsort(-rows[:, 4], kind="stable")[:MAX_MERGED]
    rows, sources = rows[best], sources[best]
    if len(rows) > 1:
        cut = _cut(rows, sources, parts, shape)
        some = [slice(at, at + COMPARED_AT_ONCE) for at in range(0, len(rows), COMPARED_AT_ONCE)]
        rows = _joined(rows, np.concatenate([_pairs(rows, sources, cut, each) for each in some]))
    order = greedy_nms(rows[:, :4] + rows[:, 5:] * (0 if agnostic else CLASS_OFFSET), rows[:, 4], iou, most)
    return np.asarray(rows[order])


def _cut(rows: np.ndarray, sources: np.ndarray, parts: list[Slice], shape: tuple[int, int]) -> np.ndarray:
    """Whether each side (left, top, right, bottom) of each box (m, 4) lies on a border inside the picture."""
    height, width = shape
    edges = np.array([(0, 0, width, height), *((p.x1, p.y1, p.x2, p.y2) for p in parts)], np.float64)[sources + 1]
    inner = edges != np.array([0, 0, width, height])
    return np.asarray(inner & (np.abs(rows[:, :4] - edges) <= BORDER_PIXELS))


def _pairs(rows: np.ndarray, sources: np.ndarray, cut: np.ndarray, some: slice) -> np.ndarray:
    """Which boxes are parts of the same object as each of some (k, m) bool."""
    low, high = rows[some, None, :2], rows[some, None, 2:4]
    shared = np.minimum(high, rows[:, 2:4]) - np.maximum(low, rows[:, :2])  # (k, m, 2); negative where they are apart
    size, any_cut = np.maximum(rows[:, 2:4] - rows[:, :2], 1e-9), np.asarray(cut.any(axis=1))
    along = shared / np.minimum(size[some, None], size)
    inside = np.clip(shared, 0, None).prod(axis=2) / np.minimum.outer(size[some].prod(axis=1), size.prod(axis=1))
    found = (inside > SAME_OBJECT_SHARE) & (any_cut[some, None] | any_cut)
    for axis in (0, 1):
        first, last = cut[:, axis], cut[:, axis + 2]
        faced = (last[some, None] & first) | (first[some, None] & last)
        found |= faced & (shared[..., axis] >= -BORDER_PIXELS) & (along[..., 1 - axis] > HALVES_OVERLAP)
    alike = (rows[some, None, 5] == rows[:, 5]) & (sources[some, None] != sources)
    return np.asarray(found & alike)


def _joined(rows: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """One box around each group of parts, with the score of its best; a group of one stays as it is."""
    count, group = connected_components(coo_matrix(pairs), directed=False)
    if count == len(rows):
        return rows
    found = np.empty((count, rows.shape[1]), rows.dtype)
    for column, reduce in ((slice(0, 2), np.minimum), (slice(2, 6), np.maximum)):
        start = np.inf if reduce is np.minimum else -np.inf
        found[:, column] = start
        reduce.at(found[:, column], group, rows[:, column])
    return found[np.argsort(-found[:, 4], kind="stable")]
