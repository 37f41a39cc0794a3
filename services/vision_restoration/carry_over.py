"""Carries what was changed in a small copy of a picture over to the picture itself.

A reflection of a window pane is a layer that is smooth next to the photograph's own detail. In each small
neighbourhood the restored copy is about `gain · copy + offset`; both are enlarged and applied to the picture, so that
its detail stays (the fast guided filter of He and Sun, 2015, arXiv:1505.00996).
"""

import math

import cv2
import numpy as np

from fovea.api.restore import Resolution

_RADIUS = 4
"""Pixels of the small copy to each side in which gain and offset are fitted."""

_EPSILON = 1e-3
"""Variance (of 0..1) below which a neighbourhood is flat: its gain stays near 1, and the change is in the offset."""

_BAND = 256
"""Rows of the picture that are computed at once."""

_MAX_PIXELS: dict[Resolution, float] = {"auto": 2e6, "full": math.inf, "preview": 2.5e5}


def working_size(height: int, width: int, resolution: Resolution) -> tuple[int, int]:
    """Height and width of the copy in which reflections are looked for; the picture's own where it is small enough."""
    factor = math.sqrt(_MAX_PIXELS[resolution] / (height * width))
    return (height, width) if factor >= 1 else (max(round(height * factor), 1), max(round(width * factor), 1))


def shrink(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A copy (h, w, 3) of this size, each pixel the mean of its area, in the type of `pixels`."""
    return cv2.resize(pixels, size[::-1], interpolation=cv2.INTER_AREA)


def carry_over(pixels: np.ndarray, copy: np.ndarray, restored: np.ndarray) -> np.ndarray:
    """The picture (H, W, 3), uint8 or uint16, with the change that its smaller copy (h, w, 3) underwent."""
    white = np.float32(np.iinfo(pixels.dtype).max)
    gain, offset = _fit(copy / white, restored / white)
    whole = np.empty_like(pixels)
    height, width = pixels.shape[:2]
    for top in range(0, height, _BAND):
        rows = slice(top, min(top + _BAND, height))
        band = pixels[rows] / white
        large_gain, large_offset = (_enlarge(part, rows, height, width) for part in (gain, offset))
        whole[rows] = (large_gain * band + large_offset).clip(0, 1) * white + np.float32(0.5)
    return whole


def _fit(copy: np.ndarray, restored: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Gain and offset (h, w, 3) with `gain · copy + offset = restored`, the gain close to 1 where it is uncertain."""
    change, mean = restored - copy, _blur(copy)
    covariance = _blur(copy * change) - mean * _blur(change)
    gain = 1 + _blur(covariance / (_blur(copy * copy) - mean * mean + _EPSILON))
    return gain, restored - gain * copy


def _blur(values: np.ndarray) -> np.ndarray:
    return cv2.blur(values, (2 * _RADIUS + 1, 2 * _RADIUS + 1), borderType=cv2.BORDER_REFLECT)


def _enlarge(values: np.ndarray, rows: slice, height: int, width: int) -> np.ndarray:
    """These rows of (h, w, 3) enlarged bilinearly to (height, width, 3)."""
    small_height, small_width = values.shape[:2]
    down = (np.arange(rows.start, rows.stop, dtype=np.float32) + 0.5) * (small_height / height) - 0.5
    across = (np.arange(width, dtype=np.float32) + 0.5) * (small_width / width) - 0.5
    columns, lines = np.meshgrid(across, down)
    return cv2.remap(values, columns, lines, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
