"""Boxes carried from one frame of a film to the next by optical flow, so that a track survives skipped frames.

Median flow: points inside a box are followed by Lucas and Kanade's method there and back, and the median of those that
return moves and scales the box (Kalal, Mikolajczyk, Matas: Forward-backward error, ICPR 2010).
"""

import io
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

SIDE = 480
"""Longest side of the frames in which points are followed."""

GRID = 8
"""Points along each side of a box."""

MAX_RETURN = 1.0
"""Pixels that a followed point may miss when it is followed back."""

MIN_SHARE = 0.25
"""Share of a box's points that must be found again; with fewer it moves as the whole picture does."""

Grey = NDArray[np.uint8]


class BoxCarrier:
    """Follows boxes through the frames of one film, which `step` gets in order."""

    def __init__(self) -> None:
        self._before: Grey | None = None

    def step(self, frame: bytes, boxes: NDArray[np.float64]) -> NDArray[np.float64]:
        """Take the next frame; return where boxes (n, 4) of the frame before are in it, not a number if they left."""
        grey, scale = _read_grey(frame)
        before, self._before = self._before, grey
        if before is None or before.shape != grey.shape or not len(boxes):
            return boxes
        height, width = grey.shape
        whole = _move(np.array([0, 0, width, height], float), before, grey)
        common = whole if whole is not None else (np.zeros(2), 1.0)
        moved = np.stack([_carry(box, _move(box, before, grey) or common) for box in boxes * scale])
        middle = (moved[:, :2] + moved[:, 2:]) / 2
        has_left = np.any((middle < 0) | (middle > (width, height)), axis=1, keepdims=True)
        return np.where(has_left, np.nan, moved / scale)


def _carry(box: NDArray[np.float64], motion: tuple[NDArray[np.float64], float]) -> NDArray[np.float64]:
    step, scale = motion
    middle, half = (box[:2] + box[2:]) / 2 + step, (box[2:] - box[:2]) / 2 * scale
    return np.concatenate([middle - half, middle + half])


def _move(box: NDArray[np.float64], before: Grey, after: Grey) -> tuple[NDArray[np.float64], float] | None:
    """How the picture inside of a box moves and grows; None where too few of its points can be followed."""
    across, down = (np.linspace(box[k], box[k + 2], GRID + 2)[1:-1] for k in (0, 1))
    points = np.stack(np.meshgrid(across, down), axis=-1).reshape(-1, 1, 2).astype(np.float32)
    moved, kept = _follow(before, after, points)
    back, returned = _follow(after, before, moved)
    good = kept & returned & (np.abs(back - points).max(axis=(1, 2)) < MAX_RETURN)
    if good.mean() < MIN_SHARE:
        return None
    begin, end = points[good, 0].astype(np.float64), moved[good, 0].astype(np.float64)
    return np.median(end - begin, axis=0), _median_scale(begin, end)


def _read_grey(frame: bytes) -> tuple[Grey, float]:
    """A frame in grey, small enough to follow points quickly, and its scale."""
    try:
        with Image.open(io.BytesIO(frame)) as image:
            scale = min(1.0, SIDE / max(image.size))
            size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
            return np.asarray(image.convert("L").resize(size, Image.Resampling.BILINEAR)), scale
    except (OSError, ValueError, SyntaxError):  # a frame that breaks off: there is nothing to follow
        return np.zeros((1, 1), np.uint8), 1.0


def _follow(before: Grey, after: Grey, points: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    import cv2  # noqa: PLC0415  # only films need it

    follow: Any = cv2.calcOpticalFlowPyrLK
    moved, status, _ = follow(before, after, points, None, winSize=(15, 15), maxLevel=4)
    return moved, np.asarray(status[:, 0] == 1)


def _median_scale(begin: NDArray[np.float64], end: NDArray[np.float64]) -> float:
    """How much further points lie from each other: the median over pairs of one with the next half of them."""
    half = len(begin) // 2
    was, now = (np.linalg.norm(points[:half] - points[half : 2 * half], axis=1) for points in (begin, end))
    usable = was > 1
    return float(np.median(now[usable] / was[usable])) if usable.any() else 1.0
