"""Pictures made of a picture and its restoration: their difference, both side by side, and other bit depths.

Works on RGB arrays (h, w, 3), band by band where they may be large. Knows no network and no file.
"""

import numpy as np
from PIL import Image

from shared.vision.draw import side_by_side

_BAND = 256
_LONGEST = 2048
"""Longest side of a comparison, pixels: it is looked at, not kept."""


def to_8_bits(pixels: np.ndarray) -> np.ndarray:
    """8 bits per channel: the high byte of 16."""
    return pixels if pixels.dtype == np.uint8 else (pixels >> 8).astype(np.uint8)


def to_16_bits(pixels: np.ndarray) -> np.ndarray:
    """16 bits per channel: of 8, each value repeated as its low byte, so that white stays white."""
    return pixels if pixels.dtype == np.uint16 else pixels.astype(np.uint16) * np.uint16(257)


def subtract_result(given: np.ndarray, result: np.ndarray) -> np.ndarray:
    """The removed light: given minus result, nothing below black."""
    return np.where(given > result, given - result, given.dtype.type(0))


def mean_change(given: np.ndarray, result: np.ndarray) -> float:
    """Mean absolute difference of two pictures as a share of white."""
    total = 0
    for top in range(0, len(given), _BAND):
        band = np.subtract(given[top : top + _BAND], result[top : top + _BAND], dtype=np.int32)
        total += int(np.abs(band).sum())
    return total / given.size / int(np.iinfo(given.dtype).max)


def compare_side_by_side(given: np.ndarray, result: np.ndarray) -> np.ndarray:
    """Both in one picture, before to the left, scaled down where it would be very large."""
    return side_by_side([_scaled(to_8_bits(pixels)) for pixels in (given, result)])


def _scaled(pixels: np.ndarray) -> np.ndarray:
    height, width = pixels.shape[:2]
    scale = min(1.0, _LONGEST / max(height, 2 * width))
    if scale == 1:
        return pixels
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BOX))
