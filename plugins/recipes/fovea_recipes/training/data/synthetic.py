"""Splits of synthetic data, and recipes on them: sample `index` of a split depends on (seed, split, index) alone.

Knows files; knows nothing about what is drawn.
"""

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
from pydantic import PrivateAttr

from fovea_recipes.training.recipe import Recipe

Split = Literal["train", "valid", "test"]
SPLITS: tuple[Split, ...] = ("train", "valid", "test")

Drawn = TypeVar("Drawn")
"""A data class of arrays and their `digest`."""


class DrawnRecipe(Recipe):
    """A recipe on samples that are drawn from its seed, `train`, `valid` and `test` many of them."""

    _cache: Path | None = PrivateAttr(None)

    @abstractmethod
    def split(self, name: Split) -> Any:
        """The samples of one split, with their digest; no sample is in two of them."""

    def prepare(self, cache: Path) -> str:
        self._cache = cache
        return f"train:{self.split('train').digest} valid:{self.split('valid').digest}"


def sample_rng(seed: int, split: Split, index: int) -> np.random.Generator:
    """The generator of one sample."""
    return np.random.default_rng((seed, SPLITS.index(split), index))


def load_or_draw(
    draw: Callable[..., Drawn], kind: Callable[..., Drawn], cache: Path | None, name: str, **options: Any
) -> Drawn:
    """Return `draw(**options)`, a data class of `kind` with arrays and a digest.

    With `cache` it is drawn once, into files that begin with `name`, and its pictures are mapped from disk afterwards.
    """
    if cache is None:
        return draw(**options)
    digest = cache / f"{name}.sha256"
    arrays = {each.name: cache / f"{name}.{each.name}.npy" for each in fields(kind) if each.name != "digest"}  # type: ignore[arg-type]
    if not all(file.exists() for file in (digest, *arrays.values())):
        cache.mkdir(parents=True, exist_ok=True)
        drawn: Any = draw(**options)
        for part, file in arrays.items():
            np.save(file, getattr(drawn, part))
        digest.write_text(drawn.digest)
    mapped = {part: np.load(file, mmap_mode="r") for part, file in arrays.items()}
    held = {part: array if array.ndim > 2 else np.array(array) for part, array in mapped.items()}
    return kind(**held, digest=digest.read_text())
