"""Patches of pavement with one kind of damage each, or with none: data for the demo weights of the classifiers.

Knows which kinds there are and how patches are stored; ground and damage are drawn by `pavement` and `damage`. Patch
`index` of a split depends on nothing but (seed, split, index), and its class is `index` modulo six: all are equally
many.
"""

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from fovea_recipes.detection.crack_synthesis import SurfaceDamage, alligator, longitudinal, patch, pothole, transverse
from fovea_recipes.detection.yolo9tr.data import ground

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


def draw_patch(rng: np.random.Generator, index: int, side: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """One patch and its class; see `Draw`."""
    kind = index % len(NAMES)
    picture, draw = ground(rng, side), KINDS[NAMES[kind]]
    if draw is not None:
        picture *= _shade(rng, draw, side)[..., None]
    picture += rng.normal(0, 0.03, (side, side, 1))
    return np.rint(np.clip(picture, 0, 1) * 255).astype(np.uint8), np.array([kind])


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
