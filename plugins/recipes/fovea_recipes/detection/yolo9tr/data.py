"""Synthetic road surface with boxes of damage, drawn from a seed: data for the demo weights of YOLO9tr.

Knows what asphalt looks like, roughly, and where damage goes; how damage itself looks is `damage`'s. Scene `index` of
a split depends on nothing but (seed, split, index).
"""

import numpy as np
from numpy.typing import NDArray

from fovea_recipes.detection.crack_synthesis import DAMAGE, SurfaceDamage

NAMES = tuple(DAMAGE)
"""Classes, in order of their ids."""

SIDE = 192
"""Pixels of a scene."""

MOST = 4
"""Damages of a scene."""

SMALLEST = 8
"""A box whose longer side is shorter is dropped, pixels."""

CLOUDS = 0.04
"""Standard deviation of the clouds: nearly all of them within 0.08."""

Picture = NDArray[np.float32]


def draw_scene(rng: np.random.Generator, index: int, side: int) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """One to four damages on a piece of road, none of which hides another, and their boxes; see `Draw`."""
    picture, boxes = ground(rng, side), np.empty((0, 5), np.float32)
    for _ in range(rng.integers(1, MOST + 1)):
        kind = int(rng.integers(len(NAMES)))
        found = _placed(rng, side, kind, boxes[:, 1:])
        if found is not None:
            damage, box = found
            picture *= damage.shade[..., None]
            boxes = np.concatenate([boxes, [[kind, *box]]]).astype(np.float32)
    picture += rng.normal(0, 0.03, (side, side, 1))
    return (np.clip(picture, 0, 1) * 255).round().astype(np.uint8), np.insert(boxes, 0, index, axis=1)


def _placed(
    rng: np.random.Generator, side: int, kind: int, taken: NDArray[np.float32]
) -> tuple[SurfaceDamage, tuple[int, int, int, int]] | None:
    """A damage of that class whose box is large enough and overlaps none of `taken` by a third; None after 6 tries."""
    for _ in range(6):
        damage = DAMAGE[NAMES[kind]](rng, side)
        box = damage.box
        if box is not None and max(box[2] - box[0], box[3] - box[1]) >= SMALLEST and _covered(box, taken) < 1 / 3:
            return damage, box
    return None


def _covered(box: tuple[int, int, int, int], others: NDArray[np.float32]) -> float:
    """Largest share of the smaller of two boxes that both cover."""
    low, high = np.maximum(others[:, :2], box[:2]), np.minimum(others[:, 2:], box[2:])
    shared = np.clip(high - low, 0, None).prod(axis=1)
    area = (others[:, 2:] - others[:, :2]).prod(axis=1)
    return float((shared / np.minimum(area, (box[2] - box[0]) * (box[3] - box[1]))).max(initial=0))


def ground(rng: np.random.Generator, side: int = SIDE) -> Picture:
    """Asphalt (side, side, 3) in 0..1: grey, cloudy, under a gradient of shadow, three in ten with a lane line."""
    grey = 0.35 + CLOUDS * _clouds(rng, side)
    picture = np.repeat(grey[..., None], 3, axis=2).astype(np.float32)
    if rng.random() < 0.3:
        _lane(rng, picture)
    y, x = np.mgrid[:side, :side] / side - 0.5
    towards = rng.uniform(0, 2 * np.pi)
    picture *= (1 + rng.uniform(0, 0.4) * (x * np.cos(towards) + y * np.sin(towards)))[..., None].astype(np.float32)
    return picture


def _clouds(rng: np.random.Generator, side: int) -> Picture:
    """1/f noise with a standard deviation of 1."""
    frequency = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side))
    frequency[0, 0] = np.inf
    field = np.fft.irfft2(np.fft.rfft2(rng.normal(size=(side, side))) / frequency, s=(side, side))
    return np.asarray(field / field.std(), np.float32)


def _lane(rng: np.random.Generator, picture: Picture) -> None:
    """Paint a worn line along the road, white or yellow, in place."""
    side = len(picture)
    left, width = rng.integers(0, side - 12), rng.integers(6, 13)
    paint = np.array((0.8, 0.8, 0.78) if rng.random() < 0.5 else (0.75, 0.6, 0.2), np.float32)
    worn = np.clip(0.75 + 0.25 * _clouds(rng, side)[:, left : left + width, None], 0, 1)
    strip = picture[:, left : left + width]
    strip += worn * (paint - strip)
