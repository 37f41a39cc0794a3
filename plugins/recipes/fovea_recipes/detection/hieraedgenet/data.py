"""Synthetic microscope slides with pollen grains, drawn from a seed: eight kinds that differ in pores and surface.

Knows how grains, debris and a bright field look, roughly; knows nothing about training. Slide `index` of a split
depends on nothing but (seed, split, index), so any part can be drawn alone and in any order.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from scipy.spatial import cKDTree

Pixels = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Kind:
    """Features that distinguish one kind of pollen from the others.

    Attributes:
        pores: Light openings on the rim.
        net: Whether a mesh covers the surface.
        spines: Length of the spines in pixels, 0 for none.
        walls: Rings of the wall.
    """

    pores: int = 0
    net: bool = False
    spines: float = 0.0
    walls: int = 1


KINDS: Mapping[str, Kind] = {
    "smooth": Kind(),
    "smooth-monoporate": Kind(pores=1),
    "smooth-triporate": Kind(pores=3, walls=2),
    "reticulate": Kind(net=True),
    "reticulate-monoporate": Kind(pores=1, net=True),
    "reticulate-triporate": Kind(pores=3, net=True),
    "spiny": Kind(spines=3.5),
    "spiny-large": Kind(spines=6.5, walls=2),
}
"""Names of the classes, in the order of their ids."""

NAMES = tuple(KINDS)

CROWDED = 0.2
"""Boxes of two grains overlap by no more than this (IoU)."""


@dataclass(frozen=True, slots=True)
class Grain:
    """A grain before it is drawn: where, how large (half axes a ≥ b, turned by `angle`) and what."""

    kind: int
    x: float
    y: float
    a: float
    b: float
    angle: float

    def box(self, size: int) -> NDArray[np.float32]:
        """x1, y1, x2, y2 of what is drawn of it, spines included, cut off at the border."""
        a, b = (axis + KINDS[NAMES[self.kind]].spines for axis in (self.a, self.b))
        wide = np.hypot(a * np.cos(self.angle), b * np.sin(self.angle))
        high = np.hypot(a * np.sin(self.angle), b * np.cos(self.angle))
        corners = np.array((self.x - wide, self.y - high, self.x + wide, self.y + high), np.float32)
        return np.clip(corners, 0, size).astype(np.float32)


def draw_slide(rng: np.random.Generator, index: int, size: int) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """One slide: light field, debris, one to six grains, defocus, sensor noise; and the grains' boxes, see `Draw`."""
    picture = _field(rng, size)
    for _ in range(rng.integers(0, 7)):
        _debris(rng, picture)
    grains = _scatter(rng, size)
    for grain in grains:
        _draw(rng, picture, grain)
    picture = gaussian_filter(picture, (*[rng.uniform(0, 1.6)] * 2, 0))
    picture += rng.normal(0, 0.015, picture.shape)
    image = np.rint(picture.clip(0, 1) * 255).astype(np.uint8)
    return image, np.array([(index, grain.kind, *grain.box(size)) for grain in grains], np.float32)


def _field(rng: np.random.Generator, size: int) -> Pixels:
    """A bright field (h, w, 3): vignetted, lit a little unevenly, with a slight tint."""
    y, x = np.mgrid[:size, :size].astype(np.float32) / (size - 1) - 0.5
    turn, vignette, slope = rng.uniform(0, 2 * np.pi), rng.uniform(0.05, 0.25), rng.uniform(0, 0.08)
    light = 0.85 - vignette * (x * x + y * y) + slope * (x * np.cos(turn) + y * np.sin(turn))
    return np.asarray(light[..., None] + rng.uniform(-0.02, 0.02, 3), np.float32)


def _debris(rng: np.random.Generator, picture: Pixels) -> None:
    """A blurred brown blob, in place."""
    x, y = rng.uniform(0, len(picture), 2)
    b, a = np.sort(rng.uniform(2, 10, 2))
    view, frame = _frame(picture, Grain(0, x, y, a, b, rng.uniform(0, np.pi)), 2 * a)
    _mix(view, np.array((0.45, 0.32, 0.2)), rng.uniform(0.2, 0.6) * np.exp(-(frame.reach**2)))


def _scatter(rng: np.random.Generator, size: int) -> list[Grain]:
    """One to six grains that don't cover each other."""
    placed: list[Grain] = []
    for _ in range(rng.integers(1, 7)):
        for _ in range(20):  # a crowded slide may end with fewer
            grain = _grain(rng, size)
            if all(_iou(grain.box(size), other.box(size)) <= CROWDED for other in placed):
                placed.append(grain)
                break
    return placed


def _grain(rng: np.random.Generator, size: int) -> Grain:
    kind = int(rng.integers(len(KINDS)))
    a = rng.uniform(16 if NAMES[kind] == "spiny-large" else 9, 24)
    x, y = rng.uniform(0.6 * a, size - 0.6 * a, 2)
    return Grain(kind, x, y, a, a * rng.uniform(0.8, 1), rng.uniform(0, np.pi))


def _iou(first: Pixels, second: Pixels) -> float:
    low, high = np.maximum(first[:2], second[:2]), np.minimum(first[2:], second[2:])
    shared = np.prod(np.clip(high - low, 0, None))
    return float(shared / (np.prod(first[2:] - first[:2]) + np.prod(second[2:] - second[:2]) - shared))


@dataclass(frozen=True, slots=True)
class _Frame:
    """Pixels as a grain sees them, all (h, w).

    Attributes:
        u: Along its long axis, pixels from its centre.
        v: Along its short axis.
        reach: 0 at its centre, 1 on its rim.
        inside: Distance to the rim in pixels, negative inside; near the rim a good approximation.
    """

    u: Pixels
    v: Pixels
    reach: Pixels
    inside: Pixels


def _frame(picture: Pixels, grain: Grain, margin: float) -> tuple[Pixels, _Frame]:
    """The part of a picture (h, w, 3) around a grain, as a view, and its pixels in the grain's frame."""
    size, far = len(picture), grain.a + margin
    (top, bottom), (left, right) = ((max(0, int(at - far)), min(size, int(at + far) + 2)) for at in (grain.y, grain.x))
    y, x = np.mgrid[top:bottom, left:right].astype(np.float32)
    x, y = x + 0.5 - grain.x, y + 0.5 - grain.y
    u, v = x * np.cos(grain.angle) + y * np.sin(grain.angle), y * np.cos(grain.angle) - x * np.sin(grain.angle)
    reach = np.hypot(u / grain.a, v / grain.b)
    return picture[top:bottom, left:right], _Frame(u, v, reach, (reach - 1) * (grain.a * grain.b) ** 0.5)


def _draw(rng: np.random.Generator, picture: Pixels, grain: Grain) -> None:
    """One grain, in place: spines below, then body, mesh, wall and pores."""
    kind = KINDS[NAMES[grain.kind]]
    view, frame = _frame(picture, grain, kind.spines + 4)
    body = rng.uniform((0.70, 0.45, 0.25), (0.95, 0.70, 0.60))
    dark = body * rng.uniform(0.45, 0.6)
    if kind.spines:
        _mix(view, dark, 0.85 * _spines(rng, grain, frame, kind.spines))
    _mix(view, body * (1.08 - 0.2 * frame.reach.clip(0, 1)[..., None] ** 2), 0.93 * _covered(frame.inside))
    if kind.net:
        _mix(view, dark, 0.6 * _mesh(rng, grain, frame))
    width = rng.uniform(1, 2)
    for ring in range(kind.walls):
        _mix(view, dark, 0.9 * _covered(np.abs(frame.inside + width / 2 + 2.5 * width * ring) - width / 2))
    turn = rng.uniform(0, 2 * np.pi)
    for pore in range(kind.pores):
        _pore(view, grain, frame, turn + 2 * np.pi * pore / kind.pores)


def _mix(picture: Pixels, colour: NDArray[Any], alpha: NDArray[Any]) -> None:
    """Draw a picture towards a colour, in place."""
    picture += alpha[..., None] * (colour - picture)


def _covered(distance: Pixels) -> Pixels:
    """How much of a pixel lies inside of an edge, by its distance in pixels."""
    return np.asarray(np.clip(0.5 - distance, 0, 1), np.float32)


def _spines(rng: np.random.Generator, grain: Grain, frame: _Frame, length: float) -> Pixels:
    """Radial strokes that taper outwards; long ones stand wider apart."""
    count = round(2 * np.pi * grain.a / (1.2 * length + 3))
    turned = (np.arctan2(frame.v / grain.b, frame.u / grain.a) + rng.uniform(0, 2 * np.pi)) * count / (2 * np.pi)
    across = np.abs(turned - np.rint(turned)) * (2 * np.pi / count) * np.hypot(frame.u, frame.v)
    return _covered(frame.inside - length) * _covered(across - 0.25 * length * (1.2 - frame.inside / length))


def _mesh(rng: np.random.Generator, grain: Grain, frame: _Frame) -> Pixels:
    """Edges of a Voronoi diagram of points about five pixels apart, inside of the wall."""
    seeds = rng.uniform(-grain.a, grain.a, (max(12, round(4 * grain.a**2 / 25)), 2))
    within = frame.inside < -1
    near, _ = cKDTree(seeds).query(np.column_stack((frame.u[within], frame.v[within])), k=2)
    mesh = np.zeros_like(frame.inside)
    mesh[within] = _covered((near[:, 1] - near[:, 0]) / 2 - 0.6)
    return mesh


def _pore(view: Pixels, grain: Grain, frame: _Frame, turn: float) -> None:
    """An opening on the rim, in place: a light disc with a dark edge."""
    away = np.hypot(frame.u - 0.92 * grain.a * np.cos(turn), frame.v - 0.92 * grain.b * np.sin(turn))
    radius = max(2.2, 0.2 * grain.a)
    _mix(view, np.array((0.35, 0.2, 0.15)), 0.7 * _covered(away - radius - 0.8))
    _mix(view, np.array((0.97, 0.95, 0.9)), _covered(away - radius))
