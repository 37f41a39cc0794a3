"""Burnt-in text: letters drawn into a picture's pixels, which no removal of header fields takes away.

Finds rows of small bright or dark marks of one height, as overlays of names, dates and settings are. A warning, not a
guarantee: it reads no text, and text without contrast or at an angle escapes it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from scipy import ndimage

Box = tuple[int, int, int, int]

MIN_LETTERS = 4
MIN_HEIGHT, MAX_HEIGHT = 5, 48
CONTRAST = 90
"""Grey levels between letters and what is around them."""
MAX_LINES = 50


@dataclass(frozen=True)
class TextFinding:
    """An object's statement about text in its pixels, None without one, and boxes x1, y1, x2, y2 of lines of text."""

    declared: str | None
    lines: list[Box]

    @property
    def is_suspected(self) -> bool:
        """Whether text was declared or seen."""
        return self.declared == "YES" or bool(self.lines)


def inspect_text(dataset: Dataset, picture: NDArray[np.uint8]) -> TextFinding:
    """Look for burnt-in text in the first frame (h, w, 3) of an object."""
    declared = str(dataset.get("BurnedInAnnotation") or "").strip().upper()
    return TextFinding(declared if declared in {"YES", "NO"} else None, find_text_lines(picture))


def find_text_lines(picture: NDArray[np.uint8]) -> list[Box]:
    """Boxes of rows of letter-like marks in a picture (h, w, 3), top to bottom."""
    grey = picture.max(2).astype(np.int16)
    surround = ndimage.median_filter(grey[::2, ::2], size=15).repeat(2, 0).repeat(2, 1)
    surround = surround[: grey.shape[0], : grey.shape[1]]
    lines: list[Box] = []
    for marks in (grey - surround > CONTRAST, surround - grey > CONTRAST):
        lines += _group(_letters(marks))
    return sorted(lines, key=lambda box: (box[1], box[0]))[:MAX_LINES]


def _letters(marks: NDArray[np.bool_]) -> list[Box]:
    """Boxes of connected marks that have the size and the fill of letters."""
    labels, count = ndimage.label(marks, np.ones((3, 3), bool))
    found: list[Box] = []
    areas = np.bincount(labels.ravel(), minlength=count + 1)
    for number, place in enumerate(ndimage.find_objects(labels), 1):
        rows, columns = place
        height, width = rows.stop - rows.start, columns.stop - columns.start
        fill = areas[number] / (height * width)
        if MIN_HEIGHT <= height <= MAX_HEIGHT and 1 <= width <= 1.6 * height and 0.15 <= fill <= 0.95:
            found.append((columns.start, rows.start, columns.stop, rows.stop))
    return found


def _group(letters: Sequence[Box]) -> list[Box]:
    """Rows of at least `MIN_LETTERS` letters of like height on one base line, close together."""
    rest = sorted(letters)
    lines: list[Box] = []
    while rest:
        line = [rest.pop(0)]
        for box in list(rest):
            if _follows(line[-1], box):
                line.append(box)
                rest.remove(box)
        widths = {box[2] - box[0] for box in line}
        if len(line) >= MIN_LETTERS and (len(widths) > 1 or len(line) > 2 * MIN_LETTERS):
            corners = np.asarray(line)
            (x1, y1), (x2, y2) = corners[:, :2].min(0), corners[:, 2:].max(0)
            lines.append((int(x1), int(y1), int(x2), int(y2)))
    return lines


def _follows(left: Box, right: Box) -> bool:
    """Whether one letter stands behind another on the same line."""
    height, other = left[3] - left[1], right[3] - right[1]
    gap = right[0] - left[2]
    is_like = 0.6 <= height / other <= 1.7
    return is_like and -1 <= gap <= 1.5 * height and abs(left[3] - right[3]) <= max(2, 0.3 * height)
