"""A sheet of sample frames above their masks, for the documentation (`docs/images/polyps.png`) and for looking at data.

Knows pictures and masks; knows nothing about how they were drawn.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

from services.medical_seg.recipes.polyps import Frames

__all__ = ["contact_sheet"]

GAP = 4


def contact_sheet(frames: Frames, columns: int = 8, colours: int = 160) -> Image.Image:
    """Rows of frames, each row above the row of its masks, in a palette that keeps the file small."""
    strips: list[np.ndarray] = []
    for start in range(0, len(frames.images), columns):
        shown = slice(start, start + columns)
        masks = frames.masks[shown, ..., None] * np.full(3, 255, dtype=np.uint8)
        strips += [_strip(frames.images[shown], columns), _strip(masks, columns)]
    sheet = Image.fromarray(np.concatenate(strips)[:-GAP, :-GAP])
    return sheet.quantize(colours, kmeans=2, dither=Image.Dither.NONE)


def _strip(pictures: np.ndarray, columns: int) -> np.ndarray:
    """Pictures (n, h, w, 3) side by side on white, with a gap to the right and below; missing ones stay white."""
    _, height, width, _ = pictures.shape
    strip = np.full((height + GAP, columns * (width + GAP), 3), 255, dtype=np.uint8)
    for index, picture in enumerate(pictures):
        left = index * (width + GAP)
        strip[:height, left : left + width] = picture
    return strip
