"""Restores pictures of any size in windows, and says beforehand what that takes.

Knows arrays and an engine; memory is the picture, its result (both in the picture's own bits) and one window.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from fovea.api.restore import Estimate, RestoreIn
from fovea.errors import InvalidOption
from services.vision_restoration.variant import Variant
from shared.registry import CallContext, Engine
from shared.vision.tiling import mirror_positions, padded_length, windows

TILE_GRID = 32
"""Windows begin on multiples of the network's coarsest cell; anywhere else they would be wrong."""

CONTEXT: Mapping[Variant, int] = {"released": 96, "paper": 128}
"""Variant → what a window must see beyond its core for tiles to equal the whole."""

_WIDEST = 2048
"""Largest core that is chosen; more would save little: at 2,048 the context costs a quarter."""

_MIB = 2**20


@dataclass(frozen=True, slots=True)
class TilePlan:
    """How one picture is cut, and what that takes.

    Attributes:
        height, width: Of the picture.
        core, context: Of its tiles.
        area: Pixels of all windows together.
        largest: Pixels of the largest window.
        tiles: How many there are.
    """

    height: int
    width: int
    core: int
    context: int
    area: int
    largest: int
    tiles: int

    def estimate(self, pace: float, per_pixel: int, picture_bytes: int) -> Estimate:
        """Time and memory at a `pace` in seconds, and bytes, per pixel of a window, for a picture of so many bytes."""
        pictures = picture_bytes * 4  # input, result, and a copy while packed
        return Estimate(
            seconds=round(self.area * pace, 3),
            memory_mib=math.ceil((self.largest * per_pixel + pictures) / _MIB),
            tiles=self.tiles,
            tile_core=self.core,
            tile_context=self.context,
        )


def plan_tiles(height: int, width: int, variant: Variant, request: RestoreIn, per_pixel: int) -> TilePlan:
    """Cut a picture as asked for, or into the largest tiles that the memory allows.

    Raises InvalidOption: not even the smallest tile fits into `memory_mib`.
    """
    context = CONTEXT[variant] if request.tile_context is None else request.tile_context
    core = request.tile_core or _core(height, width, context, request.memory_mib, per_pixel)
    areas = [w.height * w.width for w in windows(height, width, core=core, context=context, grid=TILE_GRID)]
    return TilePlan(height, width, core, context, sum(areas), max(areas), len(areas))


def _core(height: int, width: int, context: int, budget: int, per_pixel: int) -> int:
    """The largest core whose window fits; no larger than the picture, which one tile then covers."""
    room = budget * _MIB / per_pixel
    longest = padded_length(max(height, width), TILE_GRID)
    for core in range(min(_WIDEST, longest), 0, -TILE_GRID):
        window = math.prod(min(padded_length(side, TILE_GRID), core + 2 * context) for side in (height, width))
        if window <= room:
            return core
    least = math.ceil((TILE_GRID + 2 * context) ** 2 * per_pixel / _MIB)
    raise InvalidOption(
        f"A tile of this model takes {least:,} MiB at least; {budget:,} are allowed.",
        hint="Raise memory_mib, or lower tile_context, which makes borders of tiles visible.",
        field="memory_mib",
    )


def restore_by_tiles(
    engine: Engine, pixels: np.ndarray, how: TilePlan, run: CallContext, report: Callable[[int], None]
) -> np.ndarray:
    """The restored picture (h, w, 3), in the type of the one given.

    Answers are clipped and truncated, as the paper saves its results.

    Args:
        engine: Takes pictures (n, 3, h, w) in 0..1.
        pixels: RGB (h, w, 3), uint8 or uint16.
        how: The plan for pictures of this size.
        run: Checked before each tile.
        report: Called with the number of tiles done, after each.

    Raises:
        Cancelled, DeadlineExceeded: Between two tiles.
    """
    (given,), (wanted,) = engine.inputs, engine.outputs
    white = np.float32(np.iinfo(pixels.dtype).max)
    whole = np.empty_like(pixels)
    cut = windows(how.height, how.width, core=how.core, context=how.context, grid=TILE_GRID)
    for done, window in enumerate(cut, start=1):
        run.check()
        rows = mirror_positions(window.top, window.top + window.height, how.height)
        columns = mirror_positions(window.left, window.left + window.width, how.width)
        patch = pixels[rows[:, None], columns].transpose(2, 0, 1)[None]
        feed = np.ascontiguousarray(patch, dtype=np.float32)
        feed /= white
        answer = engine.run({given.name: feed})[wanted.name][0]
        core = answer[(slice(None), *window.core)].clip(0, 1) * white
        whole[window.rows, window.columns] = core.transpose(1, 2, 0)  # casting to integers truncates
        report(done)
    return whole
