"""Pairs of a picture with a reflection and the same without, in 8 bits."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

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


def to_bits(picture: NDArray[np.float32]) -> Picture:
    """A picture in 0..1 in 8 bits."""
    return np.asarray((picture.clip(0, 1) * 255).round(), dtype=np.uint8)
