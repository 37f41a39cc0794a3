"""A sheet of sample frames above their masks, to look at data."""

from __future__ import annotations

import numpy as np
from PIL import Image

from fovea_recipes.medical_seg.polyps import PolypFrames
from fovea_recipes.training import contact_sheet as vision_contact_sheet


def contact_sheet(frames: PolypFrames, columns: int = 8, colours: int = 160) -> Image.Image:
    """Rows of frames, each row above the row of its masks."""
    masks = frames.masks[..., None] * np.full(3, 255, dtype=np.uint8)
    return vision_contact_sheet.contact_sheet(
        list(vision_contact_sheet.pair_rows(list(frames.images), list(masks), columns)), columns, colours
    )
