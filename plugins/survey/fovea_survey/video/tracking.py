"""The same object in many frames: ids by the overlap of boxes, in the manner of ByteTrack.

Certain detections are matched to tracks first, by the least total distance; what is uncertain may only continue a
track, which bridges frames in which an object is half hidden. Knows rows of boxes; knows no picture.
"""

from dataclasses import dataclass, field

import numpy as np
from scipy.optimize import linear_sum_assignment

MIN_IOU = 0.2
"""Least overlap with where a track should be now."""

MIN_IOU_UNCERTAIN = 0.5
"""Least overlap of an uncertain detection."""

MAX_FRAMES_AWAY = 30
"""Frames that a track waits for its object to come back."""

SPEED_SMOOTHING = 0.5
"""Weight of the newest step in a track's speed."""


@dataclass(slots=True)
class _Track:
    """One object: where it was last, how its corners move per frame, and for how many frames it has been away."""

    id: int
    kind: int
    box: np.ndarray
    speed: np.ndarray = field(default_factory=lambda: np.zeros(4))
    away: int = 0

    def predict(self) -> np.ndarray:
        """Corners where it should be in this frame."""
        return np.asarray(self.box + self.speed * (self.away + 1))

    def update(self, box: np.ndarray) -> None:
        """Move to where it was found."""
        step = (box - self.box) / (self.away + 1)
        self.speed = SPEED_SMOOTHING * step + (1 - SPEED_SMOOTHING) * self.speed
        self.box, self.away = box, 0


class Tracker:
    """Gives the detections of one stream's frames ids, in the order of the frames.

    Memory: the tracks that were seen in the last `max_away` frames.
    """

    def __init__(self, certain: float, max_away: int = MAX_FRAMES_AWAY) -> None:
        """Start a stream; detections that score less than `certain` never begin a track."""
        self.certain, self._max_away = certain, max_away
        self._tracks: list[_Track] = []
        self._next = 1

    @property
    def alive(self) -> int:
        """Tracks that are remembered."""
        return len(self._tracks)

    @property
    def boxes(self) -> np.ndarray:
        """Corners (n, 4) of the tracks, where they were last."""
        return np.array([track.box for track in self._tracks], np.float64).reshape(-1, 4)

    def carry(self, boxes: np.ndarray) -> None:
        """Move the tracks to these corners (n, 4), in the order of `boxes`; those that are not a number have left."""
        for track, box in zip(self._tracks, boxes, strict=True):
            track.box, track.speed = box, np.zeros(4)
        self._tracks = [track for track in self._tracks if np.isfinite(track.box).all()]

    def update(self, rows: np.ndarray) -> list[int | None]:
        """Ids of the detections (m, 6) of the next frame: x1, y1, x2, y2, score, class; None where there is none."""
        ids: list[int | None] = [None] * len(rows)
        sure = np.flatnonzero(rows[:, 4] >= self.certain) if len(rows) else np.empty(0, np.int64)
        rest = np.setdiff1d(np.arange(len(rows)), sure)
        waiting = self._match(self._tracks, rows, sure, MIN_IOU, ids)
        recent = [track for track in waiting if track.away == 0]
        lost = self._match(recent, rows, rest, MIN_IOU_UNCERTAIN, ids) + [track for track in waiting if track.away]
        for track in lost:
            track.away += 1
        self._tracks = [track for track in self._tracks if track.away <= self._max_away]
        for index in sure:
            if ids[index] is None:
                ids[index] = self._begin(rows[index])
        return ids

    def _match(
        self, tracks: list[_Track], rows: np.ndarray, chosen: np.ndarray, least: float, ids: list[int | None]
    ) -> list[_Track]:
        """Continue tracks by the chosen rows and write their ids down; the tracks that found none."""
        if not tracks or not len(chosen):
            return list(tracks)
        overlap = _iou(np.stack([track.predict() for track in tracks]), rows[chosen, :4])
        overlap *= np.array([track.kind for track in tracks])[:, None] == rows[chosen, 5]
        found = set()
        for at, column in zip(*linear_sum_assignment(-overlap), strict=True):
            if overlap[at, column] >= least:
                tracks[at].update(rows[chosen[column], :4].astype(np.float64))
                ids[chosen[column]] = tracks[at].id
                found.add(at)
        return [track for at, track in enumerate(tracks) if at not in found]

    def _begin(self, row: np.ndarray) -> int:
        track = _Track(self._next, int(row[5]), row[:4].astype(np.float64))
        self._next += 1
        self._tracks.append(track)
        return track.id


def _iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """IoU (n, m) of all pairs of corners."""
    low, high = np.maximum(a[:, None, :2], b[:, :2]), np.minimum(a[:, None, 2:], b[:, 2:])
    shared = np.clip(high - low, 0, None).prod(axis=2)
    first, second = ((box[:, 2:] - box[:, :2]).clip(0).prod(axis=1) for box in (a, b))
    return np.asarray(shared / np.maximum(first[:, None] + second - shared, 1e-9))
