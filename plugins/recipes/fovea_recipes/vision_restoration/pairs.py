"""Pairs of a picture with a reflection and the same without, drawn from scenes and photographs by formula C.

Knows sources and crops; a source is in one split only. A pair depends on its generator alone, so pairs of the same seed
are the same pairs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fovea_recipes.vision_restoration.photographs import Split, photographs
from fovea_recipes.vision_restoration.scenes import scene
from fovea_recipes.vision_restoration.synthesis import blend_varied

Picture = NDArray[np.uint8]


@dataclass(frozen=True, slots=True, eq=False)
class ReflectionPairs:
    """Pairs with reflections and without (n, s, s, 3), 8 bits, and which have no reflection at all (n,)."""

    mixed: Picture
    clean: Picture
    plain: NDArray[np.bool_]

    @classmethod
    def stack(cls, drawn: Iterable[tuple[Picture, Picture, bool]]) -> ReflectionPairs:
        """Pairs of single ones."""
        mixed, clean, bare = zip(*drawn, strict=True)
        return cls(np.stack(mixed), np.stack(clean), np.array(bare))


@dataclass(frozen=True, slots=True, eq=False)
class ReflectionSources:
    """Pictures that pairs are cropped from."""

    photographs: list[Picture]
    scenes: list[Picture]

    @property
    def digest(self) -> str:
        """sha256 over all pixels."""
        found = hashlib.sha256()
        for picture in (*self.photographs, *self.scenes):
            found.update(str(picture.shape).encode())
            found.update(picture.tobytes())
        return found.hexdigest()

    def pair(self, rng: np.random.Generator, size: int, plain: float) -> tuple[Picture, Picture, bool]:
        """One pair in 8 bits, as a camera would store it; with probability `plain` there is no reflection."""
        behind, before = (self._crop(rng, size) for _ in range(2))
        bare = bool(rng.random() < plain)
        mixed, clean = blend_varied(behind, np.zeros_like(before) if bare else before, rng)
        return to_bits(mixed), to_bits(clean), bare

    def pairs(self, rng: np.random.Generator, count: int, size: int, plain: float) -> ReflectionPairs:
        """`count` pairs in order."""
        return ReflectionPairs.stack(self.pair(rng, size, plain) for _ in range(count))

    def _crop(self, rng: np.random.Generator, size: int) -> NDArray[np.float32]:
        """A square of a photograph or of a scene, one as likely as the other, flipped and turned at random."""
        pool = self.photographs if rng.random() < 0.5 else self.scenes
        picture = pool[rng.integers(len(pool))]
        top, left = (int(rng.integers(side - size + 1)) for side in picture.shape[:2])
        crop = np.rot90(picture[top : top + size, left : left + size], int(rng.integers(4)))
        crop = crop[:, ::-1] if rng.random() < 0.5 else crop
        return np.ascontiguousarray(crop, dtype=np.float32) / np.float32(255)


def sources(split: Split, scenes: int, seed: int) -> ReflectionSources:
    """The photographs of a split, and its own scenes."""
    part = ("train", "valid", "test").index(split)
    drawn = [scene(np.random.default_rng((seed, 7, part, index))) for index in range(scenes)]
    return ReflectionSources(photographs(split), drawn)


def to_bits(picture: NDArray[np.float32]) -> Picture:
    """A picture in 0..1 in 8 bits."""
    return np.asarray((picture.clip(0, 1) * 255).round(), dtype=np.uint8)
