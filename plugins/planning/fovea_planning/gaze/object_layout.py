"""Objects in a picture as a shelf: rows from top to bottom, each from left to right; and paths drawn over it.

Knows boxes and pictures; knows no network.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from fovea.errors import InvalidOption

Boxes = Sequence[tuple[float, float, float, float]]


@dataclass(frozen=True, slots=True, eq=False)
class ObjectLayout:
    """Which object stands where.

    Attributes:
        layout: Id of the object in each cell, row by row; None where there is none.
        centres: Middle (m, 2) of each object, pixels.
    """

    layout: list[list[int | None]]
    centres: np.ndarray

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns."""
        return len(self.layout), len(self.layout[0])

    @property
    def ids(self) -> list[int | None]:
        """The layout as one list of cells."""
        return [cell for row in self.layout for cell in row]


def layout_from_boxes(boxes: Boxes) -> ObjectLayout:
    """Boxes whose middles differ in height by less than half the median height share a row.

    A row is measured at its first, highest box, so that a slanted arrangement never chains into one row.
    """
    corners = np.asarray(boxes, float)
    centres = (corners[:, :2] + corners[:, 2:]) / 2
    apart = float(np.median(corners[:, 3] - corners[:, 1])) / 2
    rows: list[list[int]] = []
    for box in np.argsort(centres[:, 1], kind="stable").tolist():
        if rows and centres[box, 1] - centres[rows[-1][0], 1] < apart:
            rows[-1].append(box)
        else:
            rows.append([box])
    longest = max(map(len, rows))
    ordered = (sorted(row, key=lambda box: (centres[box, 0], box)) for row in rows)
    return ObjectLayout([[*row, *[None] * (longest - len(row))] for row in ordered], centres)


def layout_from_grid(count: int, grid: tuple[int, int], crop: tuple[int, int]) -> ObjectLayout:
    """So many objects on a full grid, row by row, as on a page of crops (height, width).

    Raises InvalidOption: there are more or fewer cells than objects.
    """
    rows, columns = grid
    if min(grid) < 1 or rows * columns != count:
        detail = f"A grid of {rows} rows and {columns} columns does not hold {count} crops."
        raise InvalidOption(detail, hint="Send rows · columns crops, row by row.", field="grid")
    cells = np.stack(np.divmod(np.arange(count), columns), 1)
    centres = (cells[:, ::-1] + 0.5) * np.array(crop[::-1])
    return ObjectLayout([list(range(first, first + columns)) for first in range(0, count, columns)], centres)


def crop_objects(pixels: np.ndarray, boxes: Boxes, size: tuple[int, int]) -> np.ndarray:
    """Content of each box, squashed to (height, width): (m, h, w, 3) in 0..1.

    Raises InvalidOption: a box is empty, outside of the picture, or not finite.
    """
    image, (height, width) = Image.fromarray(pixels), pixels.shape[:2]
    found = []
    for index, (x1, y1, x2, y2) in enumerate(boxes):
        if not np.isfinite((x1, y1, x2, y2)).all():
            raise InvalidOption(f"Box {index} has a corner that is not finite.", field="objects")
        inside = (max(x1, 0.0), max(y1, 0.0), min(x2, float(width)), min(y2, float(height)))
        if inside[2] - inside[0] < 1 or inside[3] - inside[1] < 1:
            detail = f"Box {index} has no pixel inside the picture of {width}x{height}."
            raise InvalidOption(detail, hint="Boxes are x1, y1, x2, y2 in pixels of the picture.", field="objects")
        resized = image.resize((size[1], size[0]), Image.Resampling.BILINEAR, box=inside, reducing_gap=2.0)
        found.append(np.asarray(resized, np.float32) / 255)
    return np.stack(found)


def render_layout(crops: np.ndarray, shelf: ObjectLayout) -> np.ndarray:
    """Crops (m, h, w, 3) in 0..1 side by side as they stand on the shelf, as a picture."""
    height, width = crops.shape[1:3]
    page = np.full((shelf.grid[0] * height, shelf.grid[1] * width, 3), 255, np.uint8)
    for row, ids in enumerate(shelf.layout):
        for column, item in enumerate(ids):
            if item is not None:
                cell = np.rint(crops[item] * 255).astype(np.uint8)
                page[row * height : (row + 1) * height, column * width : (column + 1) * width] = cell
    return page


def draw_scanpath(
    pixels: np.ndarray, centres: Sequence[tuple[float, float]], target: tuple[float, float]
) -> np.ndarray:
    """The picture with a path of numbered circles; the target has a ring. Small pictures are enlarged first."""
    scale = max(1, -(-640 // max(pixels.shape[:2])))
    page = Image.fromarray(pixels)
    page = page.resize((page.width * scale, page.height * scale), Image.Resampling.NEAREST)
    pen, radius = ImageDraw.Draw(page), max(9, round(max(page.size) / 70))
    font = ImageFont.load_default(round(radius * 1.2))
    points = [(x * scale, y * scale) for x, y in _spread(centres, radius / scale)]
    if len(points) > 1:
        pen.line(points, fill=(255, 255, 255), width=max(3, radius // 3))
        pen.line(points, fill=(214, 40, 57), width=max(1, radius // 5))
    x, y = target[0] * scale, target[1] * scale
    pen.ellipse((x - 2 * radius, y - 2 * radius, x + 2 * radius, y + 2 * radius), outline=(0, 160, 90), width=3)
    for number, (x, y) in enumerate(points, start=1):
        pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=(214, 40, 57), outline=(255, 255, 255))
        pen.text((x, y), str(number), fill=(255, 255, 255), font=font, anchor="mm")
    return np.asarray(page)


def _spread(centres: Sequence[tuple[float, float]], step: float) -> list[tuple[float, float]]:
    """The same points, those that were there before moved a little, so that no number hides another."""
    visits: dict[tuple[float, float], int] = {}
    moved = []
    for x, y in centres:
        times = visits.get((x, y), 0)
        visits[x, y] = times + 1
        moved.append((x + times * step, y + times * step))
    return moved
