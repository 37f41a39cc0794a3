"""Synthetic shelves, and people who search them: products as glyphs, and a policy that draws scanpaths.

Knows numpy and pictures; knows no network. There are 96 products, 12 shapes in 8 colours. A searcher starts at the
middle, prefers what looks like the target and is near, avoids what was seen, and mostly stops at the target. All of
its rates are therefore known.
"""

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

CROP = (48, 32)
"""Height and width of a product's picture."""

LONGEST = 20
"""Most fixations of a scanpath."""

PRODUCTS = 96
_COLOURS = ((214, 40, 57), (38, 100, 214), (34, 150, 70), (240, 180, 20), (140, 60, 180), (20, 170, 190),
            (240, 120, 30), (60, 60, 60))  # fmt: skip
_SHAPES = PRODUCTS // len(_COLOURS)


@dataclass(frozen=True, slots=True, eq=False)
class Trials:
    """Searches on shelves of one grid.

    Attributes:
        grid: Rows and columns; n of them together.
        items: Product (m, n) at each place.
        targets: Place (m,) of the sought product.
        paths: Fixated places (m, 20), filled up with n + 1; after the last one stands n, the end.
    """

    grid: tuple[int, int]
    items: np.ndarray
    targets: np.ndarray
    paths: np.ndarray

    def path(self, index: int) -> list[int]:
        """Fixated places of one trial, without the end."""
        places: list[int] = self.paths[index].tolist()
        return [place for place in places if place < self.items.shape[1]]


def products() -> np.ndarray:
    """Pictures (96, 48, 32, 3) in 0..1: shape = index // 8, colour = index % 8."""
    return np.stack([_product(index) for index in range(PRODUCTS)])


def noisy(pictures: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Pictures with noise of 0.05, within 0..1."""
    noise = 0.05 * rng.standard_normal(pictures.shape, np.float32)
    return np.asarray(np.clip(pictures + noise, 0, 1))


def trials(rng: np.random.Generator, count: int, grid: tuple[int, int] = (3, 9)) -> Trials:
    """So many shelves, each searched once."""
    places = grid[0] * grid[1]
    targets = rng.integers(places, size=count)
    sought = rng.integers(PRODUCTS, size=(count, 1))
    items = rng.integers(PRODUCTS - 1, size=(count, places))
    items = items + (items >= sought)  # any product but the target
    alike = rng.random((count, places))  # half of the others share its colour or its shape
    colour, shape = sought % 8, sought // 8
    same_colour = (shape + 1 + items // 8 % (_SHAPES - 1)) % _SHAPES * 8 + colour
    same_shape = shape * 8 + (colour + 1 + items % 7) % 8
    items = np.where(alike < 0.25, same_colour, np.where(alike < 0.5, same_shape, items))
    np.put_along_axis(items, targets[:, None], sought, 1)
    return Trials(grid, items, targets, draw_search(rng, grid, items, targets))


def draw_search(rng: np.random.Generator, grid: tuple[int, int], items: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """One scanpath (m, 21) of each shelf, drawn from the policy."""
    count, places = items.shape
    everyone, sought = np.arange(count), np.take_along_axis(items, targets[:, None], 1)
    liking = 2.2 * (0.5 * (items % 8 == sought % 8) + 0.5 * (items // 8 == sought // 8))  # colour and shape
    cells = np.stack(np.divmod(np.arange(places), grid[1]), 1).astype(float)
    distance = np.linalg.norm(cells[:, None] - cells[None], axis=2)
    at = np.full(count, (grid[0] // 2) * grid[1] + grid[1] // 2)
    visited, going = np.zeros((count, places)), np.ones(count, bool)
    paths = np.full((count, LONGEST + 1), places + 1)
    for step in range(LONGEST):
        near = -0.45 * distance[at] - 2.5 * visited + liking
        if step:  # only the start may be fixated from itself: a jump goes elsewhere
            near[everyone, at] = -np.inf
        odds = np.exp(near - near.max(1, keepdims=True))
        jump = (odds.cumsum(1) / odds.sum(1, keepdims=True) < rng.random((count, 1))).sum(1)
        stay = (rng.random(count) < 0.12) & (step > 0)
        at = np.where(stay, at, jump)
        paths[going, step] = at[going]
        visited[everyone, at] = 1
        stopped = going & (at == targets) & (rng.random(count) < 0.85)
        paths[stopped, step + 1] = places
        going &= ~stopped
    paths[going, LONGEST] = places
    return paths


def _product(index: int) -> np.ndarray:
    shape, colour = divmod(index, 8)
    scale, (height, width) = 4, CROP
    image = Image.new("RGB", (width * scale, height * scale), (232, 228, 220))
    pen, fill = ImageDraw.Draw(image), _COLOURS[colour]
    pen.rectangle((2 * scale, 2 * scale, (width - 2) * scale, (height - 2) * scale), fill=(248, 248, 246))
    for outline in _outlines(shape):
        pen.polygon([((16 + 12 * x) * scale, (24 + 16 * y) * scale) for x, y in outline], fill=fill)
    if shape == 1:
        pen.ellipse([(16 - 6) * scale, (24 - 8) * scale, (16 + 6) * scale, (24 + 8) * scale], fill=(248, 248, 246))
    return np.asarray(image.resize((width, height), Image.Resampling.BOX), np.float32) / 255


def _outlines(shape: int) -> list[list[tuple[float, float]]]:
    """Polygons within -1..1: disc, ring, square, two triangles, diamond, plus, two bars, star, hexagon, x."""
    bar = [(-1.0, -0.3), (1.0, -0.3), (1.0, 0.3), (-1.0, 0.3)]
    upright = [(y, x) for x, y in bar]
    turned = [[((x - y) * 0.7, (x + y) * 0.7) for x, y in part] for part in (bar, upright)]
    shapes: list[list[list[tuple[float, float]]]] = [
        [_ring(40)],
        [_ring(40)],
        [[(-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)]],
        [[(0, -1), (1, 1), (-1, 1)]],
        [[(0, 1), (1, -1), (-1, -1)]],
        [[(0, -1), (1, 0), (0, 1), (-1, 0)]],
        [bar, upright],
        [bar],
        [upright],
        [_ring(10, inner=0.4)],
        [_ring(6)],
        turned,
    ]
    return shapes[shape]


def _ring(corners: int, inner: float = 1.0) -> list[tuple[float, float]]:
    """Corners on a circle; every second one at the inner radius."""
    angles = [2 * math.pi * k / corners - math.pi / 2 for k in range(corners)]
    radii = [1.0 if k % 2 == 0 else inner for k in range(corners)]
    return [(r * math.cos(a), r * math.sin(a)) for r, a in zip(radii, angles, strict=True)]
