"""Patches of pavement with one kind of damage each, or with none: data for the demo weights of the classifiers.

Knows which kinds there are and how patches are stored; ground and damage are drawn by `pavement` and `damage`. Patch
`index` of a split depends on nothing but (seed, split, index), and its class is `index` modulo six: all are equally
many.
"""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fovea_recipes.detection.crack_synthesis import SurfaceDamage, alligator, longitudinal, patch, pothole, transverse
from fovea_recipes.detection.yolo9tr.data import ground
from fovea_recipes.training.data.synthetic import Split, load_or_draw, sample_rng

SIDE = 96
"""Pixels of a patch."""

KINDS: Mapping[str, Callable[[np.random.Generator, int], SurfaceDamage] | None] = {
    "longitudinal": longitudinal, "transverse": transverse, "alligator": alligator, "pothole": pothole, "patch": patch,
    "none": None,
}  # fmt: skip
"""Class name → what draws it, in order of the class ids."""

NAMES = tuple(KINDS)

VISIBLE = 60
"""Pixels that a damage covers at least."""

MARGIN = 16
"""Pixels by which damage is drawn on a larger place than the patch: the largest nets would not fit otherwise."""


@dataclass(frozen=True, slots=True, eq=False)
class Patches:
    """A split: pictures (n, side, side, 3) uint8, class ids (n,), and the sha256 over both."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    digest: str


def patches(split: Split, count: int, *, seed: int, side: int = SIDE, cache: Path | None = None) -> Patches:
    """The first `count` patches of a split; with `cache` they are drawn once and mapped from disk afterwards."""
    name, options = f"patches-{split}-{count}x{side}-seed{seed}", {"seed": seed, "side": side}
    return load_or_draw(draw_split, Patches, cache, name, split=split, count=count, **options)


def draw_split(split: Split, count: int, *, seed: int, side: int = SIDE) -> Patches:
    """Draw `count` patches of a split."""
    images, labels = np.empty((count, side, side, 3), np.uint8), np.arange(count) % len(NAMES)
    for index, kind in enumerate(labels):
        images[index] = draw_patch(sample_rng(seed, split, index), int(kind), side)
    return Patches(images, labels, hashlib.sha256(images.tobytes() + labels.tobytes()).hexdigest())


def draw_patch(rng: np.random.Generator, kind: int, side: int = SIDE) -> NDArray[np.uint8]:
    """One patch (side, side, 3) of a class."""
    picture, draw = ground(rng, side), KINDS[NAMES[kind]]
    if draw is not None:
        picture *= _shade(rng, draw, side)[..., None]
    picture += rng.normal(0, 0.03, (side, side, 1))
    return np.rint(np.clip(picture, 0, 1) * 255).astype(np.uint8)


def _shade(
    rng: np.random.Generator, draw: Callable[[np.random.Generator, int], SurfaceDamage], side: int
) -> NDArray[np.float32]:
    """The darkening (side, side) of a damage that is seen in part at least: a window of a slightly larger place."""
    while True:
        damage = draw(rng, side + MARGIN)
        top, left = rng.integers(0, MARGIN + 1, size=2)
        window = slice(top, top + side), slice(left, left + side)
        if damage.mask[window].sum() >= VISIBLE:
            return damage.shade[window]
