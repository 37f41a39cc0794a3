"""Sheets of sample pictures for the documentation (`docs/images/pollen.png`, `patches.png`) and for looking at data.

Knows pictures and their boxes; knows nothing about how they were drawn.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

__all__ = ["boxed", "contact_sheet"]

GAP = 4


def contact_sheet(pictures: Sequence[NDArray[np.uint8]], columns: int, colours: int = 200) -> Image.Image:
    """Pictures (h, w, 3) of one size in rows on white, in a palette that keeps the file small."""
    height, width, _ = pictures[0].shape
    rows = -(-len(pictures) // columns)
    page = np.full((rows * (height + GAP) - GAP, columns * (width + GAP) - GAP, 3), 255, np.uint8)
    for index, picture in enumerate(pictures):
        row, column = divmod(index, columns)
        top, left = row * (height + GAP), column * (width + GAP)
        page[top : top + height, left : left + width] = picture
    return Image.fromarray(page).quantize(colours, kmeans=2, dither=Image.Dither.NONE)


def boxed(picture: NDArray[np.uint8], rows: NDArray[np.float32], names: Sequence[str]) -> NDArray[np.uint8]:
    """A picture with its boxes, rows class, x1, y1, x2, y2, and their names."""
    image = Image.fromarray(picture)
    pen = ImageDraw.Draw(image)
    for kind, x1, y1, x2, y2 in rows.tolist():
        pen.rectangle((x1, y1, x2 - 1, y2 - 1), outline=(0, 140, 60))
        pen.text((x1 + 1, max(y1 - 11, 0)), names[int(kind)], fill=(0, 90, 40))
    return np.asarray(image)
