"""Pictures to the network's size and maps back to the picture's, exactly as the published code resizes.

Down: PIL's antialiased bilinear squash, the aspect is not kept. Up: bilinear, corners not aligned, as
`torch.nn.functional.interpolate` computes it, but without torch: serving an ONNX graph needs none.
"""

from collections.abc import Iterator

import numpy as np
from PIL import Image

MEAN = np.array((0.485, 0.456, 0.406), np.float32)
STD = np.array((0.229, 0.224, 0.225), np.float32)
"""Of ImageNet, by RGB channel, as a share of 255."""

_STRIP = 250_000
"""Pixels that are enlarged at a time: a megabyte stays in the processor's cache, and memory does not grow with the map.
"""


def resize_and_normalise(pixels: np.ndarray, side: int) -> np.ndarray:
    """A picture (h, w, 3) uint8 as network input (3, side, side) float32."""
    small = Image.fromarray(pixels).resize((side, side), Image.Resampling.BILINEAR)
    scaled = np.asarray(small, np.float32) / 255
    return np.ascontiguousarray(((scaled - MEAN) / STD).transpose(2, 0, 1))


def upsample(values: np.ndarray, height: int, width: int) -> np.ndarray:
    """A map (h, w) float32 at another size (height, width)."""
    return np.concatenate([part for _, part in upsample_in_strips(values, height, width)])


def upsample_in_strips(values: np.ndarray, height: int, width: int) -> Iterator[tuple[slice, np.ndarray]]:
    """`upsample`, in bands of rows from top to bottom: (rows, their values)."""
    # Gathered and mixed by hand: as a product with sparse weights it would wake all of BLAS's threads for each picture.
    above, below, down = _neighbours(values.shape[0], height)
    left, right, across = _neighbours(values.shape[1], width)
    step = max(1, _STRIP // width)
    for top in range(0, height, step):
        rows = slice(top, min(top + step, height))
        band = _mix(values[above[rows]], values[below[rows]], down[rows, None])
        yield rows, _mix(band[:, left], band[:, right], across)


def _mix(first: np.ndarray, second: np.ndarray, share: np.ndarray) -> np.ndarray:
    """`first` and a share of `second`; both are used up."""
    second -= first
    second *= share
    first += second
    return first


def _neighbours(source: int, target: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each of `target` positions along an axis: the source positions before and after, and the latter's share.

    Torch steps by a float32 scale and rounds each position once, to float32: in float64 all along, positions near the
    far end would be 1e-5 off from its own.
    """
    scale = np.float64(np.float32(source) / np.float32(target))
    at = np.maximum((scale * (np.arange(target) + 0.5) - 0.5).astype(np.float32), 0)
    low = np.minimum(at.astype(np.int64), source - 1)
    return low, np.minimum(low + 1, source - 1), at - low.astype(np.float32)
