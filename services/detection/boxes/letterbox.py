"""Fits a picture of any shape into the network's input, and brings boxes back.

Knows uint8 arrays (h, w, 3) and rounding; knows nothing about files.
"""

import cv2
import numpy as np

GREY = 114
"""Value of the padding, in every channel."""

Pads = tuple[float, float]


def fit_letterbox(
    height: int, width: int, size: int, stride: int = 32, *, auto: bool = True
) -> tuple[float, int, int, Pads]:
    """Where a picture lands: ratio, height and width after scaling, and half of the padding left and above."""
    ratio = min(size / height, size / width)
    high, wide = max(round(height * ratio), 1), max(round(width * ratio), 1)
    pad_x, pad_y = size - wide, size - high
    if auto:
        pad_x, pad_y = pad_x % stride, pad_y % stride
    return ratio, high, wide, (pad_x / 2, pad_y / 2)


def letterbox(
    image: np.ndarray, size: int = 640, stride: int = 32, auto: bool = True
) -> tuple[np.ndarray, float, Pads]:
    """Scale a uint8 picture (h, w, c) to fit a square of `size` pixels, keeping its aspect, and pad it with grey.

    `auto` pads to the next multiple of the network's coarsest `stride` only; otherwise to the whole square. Returns the
    padded picture, the ratio of its scale, and half of the padding along x and y (unrounded).
    """
    height, width, channels = image.shape
    ratio, high, wide, (pad_x, pad_y) = fit_letterbox(height, width, size, stride, auto=auto)
    top, bottom = round(pad_y - 0.1), round(pad_y + 0.1)
    left, right = round(pad_x - 0.1), round(pad_x + 0.1)
    page = np.full((top + high + bottom, left + wide + right, channels), GREY, np.uint8)
    page[top : top + high, left : left + wide] = _resized(image, high, wide)
    return page, ratio, (pad_x, pad_y)


def unletterbox(boxes: np.ndarray, padded_hw: tuple[int, int], original_hw: tuple[int, int]) -> np.ndarray:
    """Boxes (n, 4 or more) from the padded picture to the original, clipped to it; further columns are kept.

    The scale is found again from both shapes, so that a caller needs to keep nothing else.
    """
    (high, wide), (height, width) = padded_hw, original_hw
    gain = min(high / height, wide / width)
    shift = np.array([(wide - width * gain) / 2, (high - height * gain) / 2] * 2)
    found = np.array(boxes, copy=True)
    found[:, :4] = np.clip((found[:, :4] - shift) / gain, 0, np.array([width, height] * 2))
    return found


def _resized(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Bilinear between the four nearest pixels, no antialias: what the networks were trained on."""
    if image.shape[:2] == (height, width):
        return image
    return np.asarray(cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR))
