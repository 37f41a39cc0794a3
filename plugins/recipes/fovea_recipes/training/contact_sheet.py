"""Contact sheets: sample pictures in rows on white, in a palette that keeps the file small.

For documentation and for looking at data. Knows pictures of one size; knows nothing about how they were made.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

GAP = 4
"""Pixels between two pictures."""

Picture = NDArray[np.uint8]


def contact_sheet(pictures: Sequence[Picture | None], columns: int, colours: int = 200) -> Image.Image:
    """Pictures (h, w, 3), row by row; None leaves its place white."""
    height, width, _ = next(picture for picture in pictures if picture is not None).shape
    rows = -(-len(pictures) // columns)
    page = np.full((rows * (height + GAP) - GAP, columns * (width + GAP) - GAP, 3), 255, np.uint8)
    for index, picture in enumerate(pictures):
        if picture is not None:
            row, column = divmod(index, columns)
            top, left = row * (height + GAP), column * (width + GAP)
            page[top : top + height, left : left + width] = picture
    return Image.fromarray(page).quantize(colours, kmeans=2, dither=Image.Dither.NONE)


def pair_rows(above: Sequence[Picture], below: Sequence[Picture], columns: int) -> Iterator[Picture | None]:
    """The order in which each row of `above` stands over its row of `below`; short rows are filled with None."""
    for start in range(0, len(above), columns):
        for pictures in (above, below):
            row = list(pictures[start : start + columns])
            yield from [*row, *[None] * (columns - len(row))]
