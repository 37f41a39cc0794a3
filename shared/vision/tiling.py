"""Pictures of any size through a network that takes windows: tiles with context that add up to the whole, exactly.

Knows geometry on a grid and mirrored borders; knows no network. Tiles are not blended: where a window holds all that
the network looks at, the core of its answer is the answer of the whole picture. Only one window is held at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Window:
    """One tile: what the network sees, and what of its answer is kept.

    Attributes:
        top, left, height, width: The window in the padded picture; all multiples of the grid.
        rows, columns: Where its core belongs in the picture, cropped to it.
    """

    top: int
    left: int
    height: int
    width: int
    rows: slice
    columns: slice

    @property
    def core(self) -> tuple[slice, slice]:
        """Rows and columns of the core within the window's answer."""
        return _moved(self.rows, self.top), _moved(self.columns, self.left)


def windows(height: int, width: int, *, core: int = 512, context: int = 128, grid: int = 32) -> Iterator[Window]:
    """The tiles of a picture, row by row: cores on the grid, `context` around each, cut at the padded border.

    Raises ValueError: `core` or `context` is not a multiple of `grid`, or `core` is not positive.
    """
    if core <= 0 or context < 0 or core % grid or context % grid:
        message = f"core and context must be multiples of {grid}, got {core} and {context}"
        raise ValueError(message)
    across = _cuts(width, core, context, grid)
    return (
        Window(top, left, bottom - top, right - left, rows, columns)
        for top, bottom, rows in _cuts(height, core, context, grid)
        for left, right, columns in across
    )


def padded_length(length: int, grid: int = 32) -> int:
    """The length of an axis after padding: the next multiple of the grid."""
    return length + -length % grid


def mirror_positions(start: int, stop: int, length: int) -> np.ndarray:
    """Positions within an axis of `length` that stand at start … stop-1, mirrored at the last pixel as often as needed.

    The border pixel itself is not repeated; an axis of one pixel has nothing to mirror and repeats it.
    """
    at = np.arange(start, stop)
    if length == 1:
        return np.zeros_like(at)
    at %= 2 * (length - 1)
    return np.asarray(np.minimum(at, 2 * (length - 1) - at))


def tiled(
    model: Callable[[Tensor], Tensor], image: Tensor, *, core: int = 512, context: int = 128, grid: int = 32
) -> Tensor:
    """Run a network over a picture, window by window.

    Args:
        model: (n, c, h, w) → (n, c2, h, w); sees sides that are multiples of `grid`, at most `core + 2·context`.
        image: (n, c, h, w), sides of 1 or more.
        core: Side of what is kept of a window.
        context: Margin of a window beyond its core on each side; exact when the network looks no further.
        grid: Windows begin on its multiples: the coarsest stride or pooling cell of the network.

    Returns:
        (n, c2, h, w), in the type and on the device of the network's answers.

    Raises:
        ValueError: `core` or `context` is not a multiple of `grid`.
    """
    height, width = image.shape[2:]
    whole: Tensor | None = None
    for window in windows(height, width, core=core, context=context, grid=grid):
        rows = mirror_positions(window.top, window.top + window.height, height)
        columns = mirror_positions(window.left, window.left + window.width, width)
        answer = model(image[:, :, rows][:, :, :, columns])
        if whole is None:
            whole = answer.new_empty((*answer.shape[:2], height, width))
        whole[:, :, window.rows, window.columns] = answer[(..., *window.core)]
    if whole is None:
        raise ValueError(f"the picture has no pixels: {height}×{width}")
    return whole


def _cuts(length: int, core: int, context: int, grid: int) -> list[tuple[int, int, slice]]:
    """Start and end of each window along an axis, and the part of the axis that it answers for."""
    end = padded_length(length, grid)
    return [
        (max(0, at - context), min(end, at + core + context), slice(at, min(at + core, length)))
        for at in range(0, length, core)
    ]


def _moved(part: slice, start: int) -> slice:
    return slice(part.start - start, part.stop - start)
