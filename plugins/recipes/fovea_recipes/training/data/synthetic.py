"""Splits of synthetic pictures, and recipes on them: picture `index` of a split depends on (seed, split, index) alone.

Knows files; knows nothing about what is drawn.
"""

import hashlib
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import PrivateAttr

from fovea_recipes.training.recipe import Recipe

Split = Literal["train", "valid", "test"]
SPLITS: tuple[Split, ...] = ("train", "valid", "test")

Draw = Callable[[np.random.Generator, int, int], tuple[NDArray[np.uint8], NDArray[Any]]]
"""From a generator, the number of the picture in its split and its side to the picture (side, side, 3) and its truth.

The truth is a mask (1, side, side), a class (1,), or a row for each box: picture, class, x1, y1, x2, y2 (m, 6).
"""


@dataclass(frozen=True, slots=True, eq=False)
class DrawnPictures:
    """A split: pictures (n, side, side, 3) uint8, the truth of all of them (see `Draw`), and the sha256 over both."""

    images: NDArray[np.uint8]
    truth: NDArray[Any]
    digest: str

    def boxes(self, index: int) -> NDArray[np.float32]:
        """The boxes (m, 5) of one picture: class, x1, y1, x2, y2."""
        return np.asarray(self.truth[self.truth[:, 0] == index, 1:])


class DrawnRecipe(Recipe):
    """A recipe on pictures that are drawn from its seed, `train`, `valid` and `test` many of them."""

    _cache: Path | None = PrivateAttr(None)

    @abstractmethod
    def split(self, name: Split) -> DrawnPictures:
        """The pictures of one split; no picture is in two of them."""

    def prepare(self, cache: Path) -> str:
        self._cache = cache
        return f"train:{self.split('train').digest} valid:{self.split('valid').digest}"

    def draw_once(self, draw: Draw, split: Split, side: int) -> DrawnPictures:
        """Draw the pictures of a split; behind `prepare` only once, into files that are mapped afterwards."""
        count = getattr(self, split)
        if self._cache is None:
            return draw_split(draw, split, count, self.seed, side)
        stem = f"{self.name}-{split}-{count}x{side}-seed{self.seed}"
        images, truth, digest = (self._cache / f"{stem}.{end}" for end in ("images.npy", "truth.npy", "sha256"))
        if not (images.exists() and truth.exists() and digest.exists()):
            self._cache.mkdir(parents=True, exist_ok=True)
            drawn = draw_split(draw, split, count, self.seed, side)
            np.save(images, drawn.images)
            np.save(truth, drawn.truth)
            digest.write_text(drawn.digest)
        mapped = np.load(truth, mmap_mode="r")
        held = mapped if mapped.ndim > 2 else np.array(mapped)
        return DrawnPictures(np.load(images, mmap_mode="r"), held, digest.read_text())


def draw_split(draw: Draw, split: Split, count: int, seed: int, side: int) -> DrawnPictures:
    """Draw the first `count` pictures of a split."""
    images, truths = np.empty((count, side, side, 3), np.uint8), []
    for index in range(count):
        rng = np.random.default_rng((seed, SPLITS.index(split), index))
        images[index], truth = draw(rng, index, side)
        truths.append(truth)
    truth = np.concatenate(truths)
    return DrawnPictures(images, truth, hashlib.sha256(images.tobytes() + truth.tobytes()).hexdigest())
