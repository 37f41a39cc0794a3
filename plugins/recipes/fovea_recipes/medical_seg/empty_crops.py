"""Crops without a polyp: how often a network marks something in them; a rule against faint components.

Knows arrays of frames and probability maps; knows no network.
"""

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fovea_recipes.medical_seg.evaluation import mean_dice_at_half
from shared.vision.mask_regions import find_regions

Maps = NDArray[np.float32]
Masks = NDArray[np.bool_]
Pixels = NDArray[np.uint8]

PEAKS = (0.5, 0.6, 0.7, 0.8, 0.9)
"""Peaks that are tried, in this order."""

CLEAN = 0.98
"""Share of crops that are to stay empty."""

LOSS = 0.002
"""Dice that this may cost."""


def crops_without_polyp(images: Pixels, masks: Pixels, rng: np.random.Generator, tries: int = 20) -> Pixels:
    """One crop (s, s, 3) of each frame (n, s, s, 3) in which nothing is marked, enlarged to the frame's size.

    Frames in which none is found by chance give none.
    """
    crops, side = [], images.shape[1]
    for image, mask in zip(images, masks, strict=True):
        for _ in range(tries):
            part = int(rng.uniform(0.35, 0.6) * side)
            y, x = rng.integers(0, side - part, 2)
            if not mask[y : y + part, x : x + part].any():
                crop = Image.fromarray(image[y : y + part, x : x + part])
                crops.append(np.asarray(crop.resize((side, side), Image.Resampling.BILINEAR)))
                break
    return np.stack(crops) if crops else images[:0]


def drop_faint(maps: Maps, peak: float) -> Maps:
    """Maps (n, h, w) without the components above one half whose largest probability stays below `peak`."""
    made = maps.copy()
    for page in made:
        found, labels = find_regions(page >= 0.5)
        for region in found:
            inside = labels[region.rows, region.columns] == region.label
            part = page[region.rows, region.columns]
            if part[inside].max() < peak:
                part[inside] = 0
    return made


def share_clean(maps: Maps, peak: float) -> float:
    """Share of maps (n, h, w) of crops without a polyp in which nothing reaches `peak`; 1 for none."""
    return float((maps.max(axis=(1, 2), initial=0) < peak).mean()) if len(maps) else 1.0


def choose_peak(maps: Maps, masks: Masks, clean: Maps) -> float:
    """The least peak that leaves enough crops empty; a larger one where Dice does not suffer; else what it may cost."""
    best, chosen = mean_dice_at_half(maps, masks), PEAKS[0]
    for peak in PEAKS:
        if mean_dice_at_half(drop_faint(maps, peak), masks) < best - LOSS:
            break
        chosen = peak
        if share_clean(clean, peak) >= CLEAN:
            break
    return chosen
