"""What a mask consists of: connected regions, their boxes, their outlines as polygons, and COCO's run lengths.

A mask is a bool array (h, w); x runs right, y down. Outlines follow the edges between pixels, so that their corners are
whole numbers in 0..w and 0..h, and filling them gives the mask back exactly. Knows NumPy and SciPy only.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

__all__ = [
    "Outline",
    "Region",
    "decode_run_lengths",
    "encode_run_lengths",
    "find_regions",
    "keep_regions",
    "occupied_window",
    "trace_outlines",
]

_NEIGHBOURS = np.ones((3, 3), bool)
"""Pixels that touch at a corner belong together."""

Corner = tuple[int, int]
Step = tuple[int, int]

_SIDES: tuple[tuple[int, tuple[Step, Step]], ...] = ((0, ((1, 0), (-1, 0))), (1, ((0, -1), (0, 1))))
"""Axis → the step along an edge behind which the mask begins, and along one where it ends, with the mask to the right.

(x, y), y down: along the upper edge of a mask one goes right, along its left edge up.
"""


@dataclass(frozen=True, slots=True)
class Region:
    """One connected part of a mask (8 neighbours).

    Attributes:
        label: Its number in the label map, from 1.
        area: Pixels.
        box: (x1, y1, x2, y2); x2 and y2 are the first column and row outside.
        rows: Its rows in the label map.
        columns: Its columns in the label map.
    """

    label: int
    area: int
    box: tuple[int, int, int, int]

    @property
    def rows(self) -> slice:
        """Its rows."""
        return slice(self.box[1], self.box[3])

    @property
    def columns(self) -> slice:
        """Its columns."""
        return slice(self.box[0], self.box[2])


@dataclass(frozen=True, slots=True)
class Outline:
    """A closed polygon around a part of a mask, or around a hole in it.

    Attributes:
        points: Corners (n, 2) as x, y; the last is joined to the first. The mask lies to the right of each edge as it
            is drawn on a screen (y down), so outer outlines run clockwise and holes the other way round.
        hole: Whether the inside is not part of the mask.
    """

    points: np.ndarray
    hole: bool


def occupied_window(mask: np.ndarray) -> tuple[slice, slice]:
    """Rows and columns of the smallest window that holds the mask; both empty for an empty mask."""
    if not (rows := np.flatnonzero(mask.any(axis=1))).size:
        return slice(0, 0), slice(0, 0)
    columns = np.flatnonzero(mask[rows[0] : rows[-1] + 1].any(axis=0))
    return slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)


def find_regions(mask: np.ndarray) -> tuple[list[Region], np.ndarray]:
    """The connected parts of a mask, largest first, and the map (h, w) of their labels (0 outside)."""
    labels = np.zeros(mask.shape, np.int32)
    rows, columns = occupied_window(mask)
    window = labels[rows, columns]
    if not window.size:
        return [], labels
    count = ndimage.label(mask[rows, columns], _NEIGHBOURS, output=window)
    areas = np.bincount(window.ravel(), minlength=count + 1)
    found = [
        Region(
            number,
            int(areas[number]),
            (x.start + columns.start, y.start + rows.start, x.stop + columns.start, y.stop + rows.start),
        )
        for number, (y, x) in enumerate(ndimage.find_objects(window), start=1)
    ]
    return sorted(found, key=lambda region: (-region.area, region.label)), labels


def keep_regions(labels: np.ndarray, chosen: list[Region]) -> np.ndarray:
    """The mask of the chosen regions alone."""
    wanted = np.zeros(int(labels.max(initial=0)) + 1, bool)
    wanted[[region.label for region in chosen]] = True
    return np.asarray(wanted[labels])


def trace_outlines(mask: np.ndarray) -> list[Outline]:
    """All outlines of a mask, in the order of their first corner (top to bottom, left to right).

    Pixels that touch only at a corner are given one common outline, as `find_regions` gives them one label.
    """
    rows, columns = occupied_window(mask)
    steps = _edges(np.pad(mask[rows, columns], 1))
    shift = np.array([columns.start - 1, rows.start - 1])
    return [_outline(corners, shift) for corners in _walks(steps)]


def _outline(corners: list[Corner], shift: np.ndarray) -> Outline:
    points = np.array(corners, dtype=np.int64) + shift
    x, y = points[:, 0], points[:, 1]
    twice_area = int((x * np.roll(y, -1) - np.roll(x, -1) * y).sum())
    return Outline(points, hole=twice_area < 0)


def _edges(padded: np.ndarray) -> dict[Corner, list[Step]]:
    """Steps of one pixel along all edges of a mask, by the corner that they leave.

    Two steps leave a corner where two parts of the mask touch.
    """
    inside = padded.astype(np.int8)
    steps: dict[Corner, list[Step]] = {}
    for axis, (begins, ends) in _SIDES:
        change = np.diff(inside, axis=axis)
        for sign, step in ((1, begins), (-1, ends)):
            ys, xs = np.nonzero(change == sign)
            # The edge lies behind the pixel that changes, and steps to the left or up start at its far end.
            start_x = xs + (axis == 1) + (step[0] < 0)
            start_y = ys + (axis == 0) + (step[1] < 0)
            for corner in zip(start_x.tolist(), start_y.tolist(), strict=True):
                steps.setdefault(corner, []).append(step)
    return steps


def _walks(steps: dict[Corner, list[Step]]) -> Iterator[list[Corner]]:
    """Follow the steps round every outline; only corners where the direction changes are kept. Uses `steps` up."""
    for start in sorted(steps, key=lambda corner: (corner[1], corner[0])):
        while steps[start]:
            yield _walk(steps, start)


def _walk(steps: dict[Corner, list[Step]], start: Corner) -> list[Corner]:
    first = heading = steps[start].pop(0)
    corner, turns = (start[0] + heading[0], start[1] + heading[1]), [start]
    # Back at a start where two parts touch, the walk is over only if the first step is the one that comes next.
    while corner != start or (steps[start] and _turn(heading, first) > 0):
        following = _leftmost(steps[corner], heading)
        if following != heading:
            turns.append(corner)
        heading = following
        corner = (corner[0] + heading[0], corner[1] + heading[1])
    return turns if heading != first else turns[1:]


def _leftmost(choices: list[Step], heading: Step) -> Step:
    """Take the step that turns left most."""
    return choices.pop(0 if len(choices) == 1 or _turn(heading, choices[0]) < 0 else 1)


def _turn(heading: Step, step: Step) -> int:
    """-1 left, 0 straight on, 1 right, as seen on a screen.

    The mask is to the right, so a turn left at a corner where two parts touch leads over to the other part.
    """
    return heading[0] * step[1] - heading[1] * step[0]


def encode_run_lengths(mask: np.ndarray) -> str:
    """COCO's compressed run lengths: column by column, runs of 0 and 1 in turn, as printable characters."""
    flat = mask.ravel(order="F")
    changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    ends = np.concatenate([[0] if flat[:1].any() else [], changes, [flat.size]]).astype(np.int64)
    runs = np.diff(ends, prepend=0)
    # From the fourth run on, only the difference to the run before last is written.
    runs[3:] -= runs[1:-2].copy()
    return "".join(map(_characters, runs.tolist()))


def _characters(number: int) -> str:
    """Five bits a character, lowest first; bit 5 says that more follow, and the last one's bit 4 is the sign."""
    text = ""
    while True:
        low, number = number & 0x1F, number >> 5
        more = number != (-1 if low & 0x10 else 0)
        text += chr(48 + (low | 0x20 if more else low))
        if not more:
            return text


def decode_run_lengths(text: str, height: int, width: int) -> np.ndarray:
    """The mask (h, w) bool of `encode_run_lengths`.

    Raises:
        ValueError: The runs don't fill the size.
    """
    runs: list[int] = []
    number = shift = 0
    for code in (ord(c) - 48 for c in text):
        number |= (code & 0x1F) << shift
        shift += 5
        if not code & 0x20:
            number -= (1 << shift) if code & 0x10 else 0
            runs.append(number + (runs[-2] if len(runs) > 2 else 0))
            number = shift = 0
    if min(runs, default=0) < 0 or sum(runs) != height * width:
        message = f"the runs fill {sum(runs)} pixels, not {height}×{width}"
        raise ValueError(message)
    return np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(width, height).T
