"""Pictures of no kind, to learn from what a kind is not: drawn by chance, or a known picture whose parts are mixed.

Knows arrays of pixels; knows no network. Nothing of anybody's data is in them, so that they teach nothing whose terms
would have to be kept (as random noise does in Hendrycks et al., *Deep Anomaly Detection with Outlier Exposure*, 2019).
"""

import cv2
import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]
Page = NDArray[np.float64]

SIDE = 192
"""Pixels of what is drawn, in height."""


def make_ood_image(rng: np.random.Generator, height: int = SIDE, width: int = SIDE * 4 // 3) -> Pixels:
    """Cloudy noise in drawn colours, and on it discs, lines, a horizon, or darkness towards the edges."""
    grey = np.full(3, rng.uniform(20, 240)) + rng.normal(0, 12, 3)
    base = rng.uniform(0, 255, 3) if rng.random() < 0.5 else grey
    contrast = np.exp(rng.uniform(np.log(4), np.log(60)))
    tint = np.clip(1 + rng.normal(0, 0.25, 3), 0.2, 2)
    page = base + contrast * _cloud(height, width, rng.uniform(0.3, 2.2), rng)[..., None] * tint
    kinds = (_with_discs, _with_discs, _with_horizon, _with_dark_edges, _with_lines)
    return np.clip(kinds[rng.integers(len(kinds))](page, rng), 0, 255).astype(np.uint8)


def scramble(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    """A picture (h, w, 3) of which colours and textures are left: tiles in another order, or a small part of it."""
    if rng.random() < 0.5:
        count, tile = int(rng.integers(3, 9)), 24
        whole = cv2.resize(pixels, (tile * count, tile * count), interpolation=cv2.INTER_AREA)
        tiles = whole.reshape(count, tile, count, tile, 3).transpose(0, 2, 1, 3, 4).reshape(-1, tile, tile, 3)
        mixed = tiles[rng.permutation(len(tiles))].reshape(count, count, tile, tile, 3).transpose(0, 2, 1, 3, 4)
        return np.ascontiguousarray(mixed.reshape(tile * count, tile * count, 3))
    height, width = pixels.shape[:2]
    side = max(int(min(height, width) * rng.uniform(0.06, 0.15)), 1)
    y, x = rng.integers(height - side + 1), rng.integers(width - side + 1)
    part = cv2.resize(pixels[y : y + side, x : x + side], (SIDE, SIDE), interpolation=cv2.INTER_CUBIC)
    return np.asarray(part, np.uint8)


def _cloud(height: int, width: int, slope: float, rng: np.random.Generator) -> Page:
    """Noise of unit variance whose amplitudes fall with frequency to the power of `slope`."""
    waves = np.hypot(np.fft.fftfreq(height)[:, None] * height, np.fft.rfftfreq(width)[None] * width)
    waves[0, 0] = 1
    drawn = (rng.normal(size=waves.shape) + 1j * rng.normal(size=waves.shape)) / waves**slope
    found = np.fft.irfft2(drawn, (height, width))
    return np.asarray((found - found.mean()) / (found.std() + 1e-9))


def _with_discs(page: Page, rng: np.random.Generator) -> Page:
    height, width = page.shape[:2]
    layer, radius = np.zeros((height, width), np.float32), np.exp(rng.uniform(np.log(4), np.log(40)))
    for _ in range(1 + int(rng.uniform(0.1, 1.2) * height * width / (np.pi * radius**2))):
        centre = int(rng.integers(width)), int(rng.integers(height))
        size = max(2, int(radius * rng.uniform(0.7, 1.3)))
        cv2.circle(layer, centre, size, float(rng.uniform(0.6, 1)), -1)
        if rng.random() < 0.5:
            cv2.circle(layer, centre, max(1, size // 2), float(rng.uniform(0.2, 0.8)), -1)
    share = cv2.GaussianBlur(layer, (0, 0), rng.uniform(0.5, 3))[..., None]
    inside = rng.uniform(0, 255, 3) + 8 * _cloud(height, width, 1.0, rng)[..., None]
    return np.asarray(page * (1 - share) + share * inside)


def _with_horizon(page: Page, rng: np.random.Generator) -> Page:
    y, x = np.mgrid[-1 : 1 : page.shape[0] * 1j, -1 : 1 : page.shape[1] * 1j]
    turn = rng.uniform(0, 2 * np.pi)
    slope = np.cos(turn) * y + np.sin(turn) * x
    if rng.random() < 0.5:
        slope = np.tanh(8 * (slope - rng.uniform(-0.5, 0.5)))
    return np.asarray(page + slope[..., None] * rng.normal(0, 70, 3))


def _with_dark_edges(page: Page, rng: np.random.Generator) -> Page:
    y, x = np.mgrid[-1 : 1 : page.shape[0] * 1j, -1 : 1 : page.shape[1] * 1j]
    return np.asarray(page * np.clip(rng.uniform(0.9, 1.5) - np.hypot(x, y) ** rng.uniform(1, 3), 0, 1)[..., None])


def _with_lines(page: Page, rng: np.random.Generator) -> Page:
    height, width = page.shape[:2]
    layer = np.zeros((height, width), np.float32)
    for _ in range(int(rng.integers(3, 40))):
        start, end = rng.integers(0, (width, height), (2, 2)).tolist()
        cv2.line(layer, start, end, 1.0, int(rng.integers(1, 6)))
    return np.asarray(page + cv2.GaussianBlur(layer, (0, 0), rng.uniform(0.5, 2))[..., None] * rng.normal(0, 60, 3))
