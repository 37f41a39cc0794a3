"""Boxes drawn on sample pictures, to look at."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw


def draw_sample_boxes(picture: NDArray[np.uint8], rows: NDArray[np.float32], names: Sequence[str]) -> NDArray[np.uint8]:
    """A picture with its boxes, rows class, x1, y1, x2, y2, and their names."""
    image = Image.fromarray(picture)
    pen = ImageDraw.Draw(image)
    for kind, x1, y1, x2, y2 in rows.tolist():
        pen.rectangle((x1, y1, x2 - 1, y2 - 1), outline=(0, 140, 60))
        pen.text((x1 + 1, max(y1 - 11, 0)), names[int(kind)], fill=(0, 90, 40))
    return np.asarray(image)
