"""Parts of a mask: connected regions, their boxes, their outlines as polygons, and COCO's run lengths.

A mask is a bool array (h, w); x runs right, y down. Outlines follow the edges between pixels, so that their corners are
whole numbers in 0..w and 0..h, and filling them gives the mask back exactly. Knows arrays only.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from scipy import ndimage

_NEIGHBOURS = np.ones((3, 3), bool)
"""Pixels that touch at a corner belong together."""

_STRIP = 1_000_000
"""Pixels whose corners are counted at a time."""

_CORNERS = np.array([(0, 0), (1, 0), (1, 1), (0, 1)])
"""Corners of a pixel from its upper left one on, clockwise."""

_DIRECTIONS = np.array([[5, 6, 7], [4, 0, 0], [3, 2, 1]])
"""Sign of y and x, plus 1 → the direction in eighths of a turn, clockwise from right."""

_ENTRY, _EXIT = np.array([0, 0, 1, 1, 2, 2, 3, 3]), np.array([1, 2, 2, 3, 3, 0, 0, 1])
"""Direction → the corner at which a border that has the mask to its right enters a pixel, and at which it leaves it."""


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


def count_corners(mask: np.ndarray) -> int:
    """How many corners all outlines of a mask have together: what it costs to trace and to send them."""
    rows, columns = occupied_window(mask)
    padded = np.pad(mask[rows, columns], 1)
    step = max(1, _STRIP // padded.shape[1])
    return sum(_corners_of(padded[top : top + step + 1]) for top in range(0, padded.shape[0] - 1, step))


def _corners_of(band: np.ndarray) -> int:
    """Corners between the rows of a band: one where the four pixels around a point are odd, two at a diagonal."""
    a, b, c, d = band[:-1, :-1], band[:-1, 1:], band[1:, :-1], band[1:, 1:]
    sides, ends = a ^ b, c ^ d
    return int(np.count_nonzero(sides ^ ends)) + 2 * int(np.count_nonzero(sides & ends & (a == d)))


def trace_outlines(mask: np.ndarray, shift: tuple[int, int] = (0, 0)) -> list[Outline]:
    """All outlines of a mask (h, w), in the order of their first corner (top to bottom, left to right).

    Pixels that touch only at a corner are given one common outline, as `find_regions` gives them one label. OpenCV
    follows the border pixels; memory grows with the corners and not with the length of the edges. `shift` is x and y of
    the mask's upper left pixel in the picture.
    """
    rows, columns = occupied_window(mask)
    window = np.ascontiguousarray(mask[rows, columns]).view(np.uint8)
    if not window.size:
        return []
    borders, _ = cv2.findContours(window, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    offset = np.array([columns.start + shift[0], rows.start + shift[1]])
    found = [_outline(corners + offset) for corners in _edge_corners(borders)]
    return sorted(found, key=lambda outline: tuple(outline.points[0, ::-1].tolist()))


def _outline(points: np.ndarray) -> Outline:
    """A polygon that begins at its first corner, top to bottom and left to right."""
    x, y = points[:, 0], points[:, 1]
    points = np.roll(points, -int(np.lexsort((x, y))[0]), axis=0)
    x, y = points[:, 0], points[:, 1]
    twice_area = int((x * np.roll(y, -1) - np.roll(x, -1) * y).sum())
    return Outline(points, hole=twice_area < 0)


def _edge_corners(borders: Sequence[np.ndarray]) -> Iterator[np.ndarray]:
    """Corners (n, 2) of the edges around each border, from the pixels (m, 1, 2) on it where its direction changes."""
    # OpenCV walks with the mask to the left, so each border is read from its end.
    pixels = np.concatenate([border[::-1, 0] for border in borders]).astype(np.int64)
    pixels, lengths = _expand_diagonals(pixels, np.array([len(border) for border in borders]))
    before, after = _ring_neighbours(lengths)
    entry = _direction(pixels - pixels[before])
    leave = _direction(pixels[after] - pixels)
    first, last = _ENTRY[entry], _EXIT[leave]
    # A pixel that is left the way it was entered, across its corner, or that is alone, has all its edges outside.
    whole = ((first == last) & (np.abs(entry - leave) == 4)) | (np.repeat(lengths, lengths) == 1)
    counts = np.where(whole, 4, (last - first) % 4)
    owner = np.repeat(np.arange(len(pixels)), counts)
    rank = np.arange(len(owner)) - np.repeat(np.cumsum(counts) - counts, counts)
    corners = pixels[owner] + _CORNERS[(first[owner] + rank) % 4]
    sizes = np.add.reduceat(counts, np.cumsum(lengths) - lengths)
    for ring in np.split(corners, np.cumsum(sizes)[:-1]):
        step = np.roll(ring, -1, axis=0) - ring
        heading = _direction(step)
        yield ring[heading != np.roll(heading, 1)]


def _expand_diagonals(pixels: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Every pixel of diagonal runs, which have a corner each; straight runs need their ends only."""
    step = pixels[_ring_neighbours(lengths)[1]] - pixels
    counts = np.where((step != 0).all(axis=1), np.abs(step[:, 0]), 1)
    rank = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    expanded = np.repeat(pixels, counts, axis=0) + np.repeat(np.sign(step), counts, axis=0) * rank[:, None]
    return expanded, np.add.reduceat(counts, np.cumsum(lengths) - lengths)


def _ring_neighbours(lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Index of the one before and the one after each item, of rings that lie one behind another."""
    ends = np.cumsum(lengths)
    before, after = np.arange(-1, ends[-1] - 1), np.arange(1, ends[-1] + 1)
    before[ends - lengths], after[ends - 1] = ends - 1, ends - lengths
    return before, after


def _direction(step: np.ndarray) -> np.ndarray:
    """Eighths of a turn (n,), clockwise from right, of steps (n, 2); 0 for none."""
    return np.asarray(_DIRECTIONS[np.sign(step[:, 1]) + 1, np.sign(step[:, 0]) + 1])


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
    """The mask (h, w) bool of `encode_run_lengths`. Raises ValueError: the runs don't fill the size."""
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
