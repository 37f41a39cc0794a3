"""Damage of asphalt, drawn from a generator of random numbers: cracks, alligator skin, potholes, patches.

Each kind is a pure function from (rng, side) to a `SurfaceDamage`: what it covers, and how much it darkens or lights.
Knows nothing about the road around it. The codes are those of road surveys.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from scipy import ndimage

Field = NDArray[np.float32]
Mask = NDArray[np.bool_]

FINE = 2
"""Lines are drawn so many times larger and then averaged, which softens their edges."""

LEAN = 20.0
"""Degrees that a crack may lean from its axis: the two classes stay separable."""


@dataclass(frozen=True, slots=True, eq=False)
class SurfaceDamage:
    """One place of damage on a square of ground: a mask (side, side), and a factor on brightness, 1 outside."""

    mask: Mask
    shade: Field

    @property
    def box(self) -> tuple[int, int, int, int] | None:
        """x1, y1, x2, y2, tight around the mask; the last two are just outside. None if it covers nothing."""
        rows, columns = np.flatnonzero(self.mask.any(axis=1)), np.flatnonzero(self.mask.any(axis=0))
        if not len(rows):
            return None
        return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def longitudinal(rng: np.random.Generator, side: int) -> SurfaceDamage:
    """D00: a crack along the road, three in ten with a branch."""
    start = (rng.uniform(0.08, 0.92) * side, rng.uniform(-0.05, 0.5) * side)
    return _crack(rng, side, start, axis=90.0)


def transverse(rng: np.random.Generator, side: int) -> SurfaceDamage:
    """D10: a crack across the road, three in ten with a branch."""
    start = (rng.uniform(-0.05, 0.5) * side, rng.uniform(0.08, 0.92) * side)
    return _crack(rng, side, start, axis=0.0)


def alligator(rng: np.random.Generator, side: int) -> SurfaceDamage:
    """D20: a net of cracks, the edges between the Voronoi cells of random points inside a blob."""
    blob = _blob(rng, side, 20, 50)
    y, x = np.mgrid[:side, :side].astype(np.float32)
    rows, columns = np.nonzero(blob)
    chosen = rng.integers(len(rows), size=rng.integers(12, 41))
    points = np.stack([columns[chosen], rows[chosen]], axis=1) + rng.uniform(-0.5, 0.5, (len(chosen), 2))
    away = np.sqrt((x - points[:, :1, None]) ** 2 + (y - points[:, 1:, None]) ** 2)
    nearest = np.partition(away, 1, axis=0)
    net = (nearest[1] - nearest[0] < rng.uniform(1.2, 2.6)) & blob
    soft = ndimage.gaussian_filter(net.astype(np.float32), 0.5)
    shade = 1 - 0.6 * np.minimum(soft * 1.3, 1) - 0.06 * blob
    return SurfaceDamage(blob, shade.astype(np.float32))


def pothole(rng: np.random.Generator, side: int) -> SurfaceDamage:
    """D40: an irregular hole, dark inside, with a rim that the light catches on one side."""
    hole = _blob(rng, side, 12, 35)
    inside = ndimage.distance_transform_edt(hole)
    depth = np.minimum(inside / 4, 1)
    slope = np.stack(np.gradient(ndimage.gaussian_filter(hole.astype(np.float32), 1.5)))
    towards = rng.uniform(0, 2 * math.pi)
    light = slope[0] * math.sin(towards) + slope[1] * math.cos(towards)
    shade = 1 - 0.5 * depth + 2.0 * np.clip(light, 0, None)
    return SurfaceDamage(hole, shade.astype(np.float32))


def patch(rng: np.random.Generator, side: int) -> SurfaceDamage:
    """A rectangle of newer, darker asphalt with a sharp seam."""
    width, height = np.minimum(rng.integers(30, 81, size=2), side)
    left, top = rng.integers(0, side - width + 1), rng.integers(0, side - height + 1)
    mask = np.zeros((side, side), bool)
    mask[top : top + height, left : left + width] = True
    seam = mask & ~ndimage.binary_erosion(mask, iterations=int(rng.integers(1, 3)))
    shade = np.where(mask, np.float32(0.85), np.float32(1))
    shade[seam] = 0.6
    return SurfaceDamage(mask, shade)


DAMAGE: Mapping[str, Callable[[np.random.Generator, int], SurfaceDamage]] = {
    "D00": longitudinal, "D10": transverse, "D20": alligator, "D40": pothole, "patch": patch,
}  # fmt: skip
"""Class name → what draws it, in order of the class ids."""


def _crack(rng: np.random.Generator, side: int, start: tuple[float, float], axis: float) -> SurfaceDamage:
    """A crack of 60 to 180 pixels along an axis (degrees), dark with a slightly lighter rim."""
    page = Image.new("L", (side * FINE, side * FINE))
    pen = ImageDraw.Draw(page)
    length, width = rng.uniform(60, 180), rng.uniform(1, 4)
    points = _walk(rng, start, axis, length)
    _draw(rng, pen, points, width)
    if rng.random() < 0.3:
        fork = points[rng.integers(len(points) // 4, len(points))]
        _draw(rng, pen, _walk(rng, (fork[0], fork[1]), axis, length * rng.uniform(0.2, 0.4)), width * 0.7)
    core = np.asarray(page.reduce(FINE), np.float32) / 255
    mask = core > 0.3
    rim = ndimage.binary_dilation(mask, iterations=2) & ~mask
    shade = (1 - 0.65 * core) * np.where(rim, np.float32(1.1), np.float32(1))
    return SurfaceDamage(mask, shade.astype(np.float32))


def _walk(rng: np.random.Generator, start: tuple[float, float], axis: float, length: float) -> NDArray[np.float64]:
    """A random walk in steps of 3 pixels whose direction wanders, but never further than `LEAN` from the axis."""
    steps = max(int(length / 3), 2)
    wander = rng.uniform(-LEAN, LEAN) * 0.6 + np.cumsum(rng.normal(0, 6, steps))
    lean = LEAN * np.tanh(wander / LEAN)  # bounded, and smooth at the bound
    angle = np.radians(axis + lean)
    moves = 3 * np.stack([np.cos(angle), np.sin(angle)], axis=1) + rng.normal(0, 0.4, (steps, 2))
    return np.concatenate([[start], start + np.cumsum(moves, axis=0)])


def _draw(rng: np.random.Generator, pen: ImageDraw.ImageDraw, points: NDArray[np.float64], width: float) -> None:
    """A line whose width varies along it."""
    widths = np.clip(width * rng.uniform(0.6, 1.3, len(points)), 1, 4) * FINE
    for (ax, ay), (bx, by), wide in zip(points[:-1] * FINE, points[1:] * FINE, widths, strict=False):
        pen.line((ax, ay, bx, by), fill=255, width=round(wide))


def _blob(rng: np.random.Generator, side: int, least: float, most: float) -> Mask:
    """An ellipse with a wavy edge, half axes of `least` to `most` pixels, all inside the square."""
    across, down = np.minimum(rng.uniform(least, most, size=2), side / 2)
    cx, cy = rng.uniform(across, side - across), rng.uniform(down, side - down)
    y, x = np.mgrid[:side, :side]
    turn = np.arctan2((y - cy) / down, (x - cx) / across)
    edge = np.ones((side, side))
    for wave in (2, 3, 5):
        edge += 0.12 / wave**0.5 * rng.uniform(-1, 1) * np.cos(wave * turn + rng.uniform(0, 2 * math.pi))
    return np.asarray(np.hypot((x - cx) / across, (y - cy) / down) < np.minimum(edge, 1.15))
