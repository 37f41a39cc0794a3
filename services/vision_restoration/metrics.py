"""PSNR and SSIM of 8-bit pictures as papers on restoration report them: three channels, no border cropped.

Knows arrays (h, w, 3) of uint8. Works band by band, so that a picture of 8K takes no gigabytes.
"""

import math
from collections.abc import Iterator

import numpy as np
from scipy.ndimage import correlate1d

_RADIUS = 5
_SIGMA = 1.5
_C1, _C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
_BAND = 1 << 20
"""Pixels that are looked at together."""


def psnr(first: np.ndarray, second: np.ndarray) -> float:
    """Peak signal-to-noise ratio in dB, 10·log10(255²/MSE); infinite for equal pictures.

    Raises ValueError: the pictures differ in size.
    """
    _check(first, second)
    bands = (first[rows].astype(np.float32) - second[rows] for rows in _bands(len(first), first.shape[1]))
    squares = sum(float(np.square(band).sum(dtype=np.float64)) for band in bands)
    return math.inf if squares == 0 else float(10 * math.log10(255**2 * first.size / squares))


def ssim(first: np.ndarray, second: np.ndarray) -> float:
    """Mean structural similarity: 11×11 Gaussian windows (σ 1.5) that lie wholly inside, per channel, then the mean.

    Raises ValueError: the pictures differ in size, or a side is shorter than the window.
    """
    _check(first, second)
    height, width = first.shape[:2]
    if min(height, width) <= 2 * _RADIUS:
        message = f"SSIM needs sides of {2 * _RADIUS + 1} pixels, got {height}×{width}"
        raise ValueError(message)
    inside, total = height - 2 * _RADIUS, 0.0
    for rows in _bands(inside, width):
        reach = slice(rows.start, rows.stop + 2 * _RADIUS)
        for channel in range(first.shape[2]):
            total += float(_similarity(first[reach, :, channel], second[reach, :, channel]).sum())
    return float(total / (inside * (width - 2 * _RADIUS) * first.shape[2]))


def _similarity(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """SSIM (h-10, w-10) of each window of two channels (h, w)."""
    x, y = x.astype(np.float64), y.astype(np.float64)
    mx, my = _smooth(x), _smooth(y)
    xx, yy, xy = _smooth(x * x) - mx * mx, _smooth(y * y) - my * my, _smooth(x * y) - mx * my
    top = (2 * mx * my + _C1) * (2 * xy + _C2)
    return np.asarray(top / ((mx * mx + my * my + _C1) * (xx + yy + _C2)))


def _smooth(x: np.ndarray) -> np.ndarray:
    at = np.arange(-_RADIUS, _RADIUS + 1)
    weights = np.exp(-(at**2) / (2 * _SIGMA**2))
    weights /= weights.sum()
    inner = slice(_RADIUS, -_RADIUS)
    rows = correlate1d(x, weights, axis=0, mode="constant")[inner]
    return np.asarray(correlate1d(rows, weights, axis=1, mode="constant")[:, inner])


def _bands(height: int, width: int) -> Iterator[slice]:
    step = max(1, _BAND // width)
    return (slice(top, min(top + step, height)) for top in range(0, height, step))


def _check(first: np.ndarray, second: np.ndarray) -> None:
    if first.shape != second.shape:
        message = f"pictures differ in size: {first.shape} and {second.shape}"
        raise ValueError(message)
