"""A sheet of sample pairs, each mixture above its scene, for the documentation (`docs/images/reflections.png`).

Knows pairs; knows nothing about how they were made.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

from services.vision_restoration.recipes.pairs import Pairs

__all__ = ["contact_sheet"]

GAP = 4


def contact_sheet(pairs: Pairs, columns: int = 8, colours: int = 200) -> Image.Image:
    """Rows of mixtures, each row above the row of its scenes, in a palette that keeps the file small."""
    strips: list[np.ndarray] = []
    for start in range(0, len(pairs.mixed), columns):
        shown = slice(start, start + columns)
        strips += [_strip(pairs.mixed[shown], columns), _strip(pairs.clean[shown], columns)]
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
