"""Pictures in one folder per class: `train/<class>` and `validation/<class>`, or `<class>` alone with a share held out.

Knows folders and names; knows no model.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fovea.errors import NotFound
from fovea_recipes.training.data.splits import HELD_OUT, TRAIN
from fovea_recipes.training.data.survey import FileProblem, list_pictures, unreadable


@dataclass(frozen=True, slots=True)
class ClassSet:
    """Pictures with one label (n,) each, and the names of classes by id."""

    names: tuple[str, ...]
    pictures: tuple[Path, ...]
    labels: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.pictures)

    @property
    def digest(self) -> str:
        """The sha256 over classes, names and bytes."""
        total = hashlib.sha256(",".join(self.names).encode())
        for path, label in zip(self.pictures, self.labels.tolist(), strict=True):
            total.update(f"{label}/{path.name}".encode() + hashlib.sha256(path.read_bytes()).digest())
        return total.hexdigest()

    @property
    def counts(self) -> dict[str, int]:
        """Pictures by class."""
        return {name: int((self.labels == index).sum()) for index, name in enumerate(self.names)}

    def take(self, indices: Sequence[int] | NDArray[np.int64]) -> ClassSet:
        """Some of the pictures."""
        return ClassSet(self.names, tuple(self.pictures[i] for i in indices), self.labels[np.asarray(indices, int)])

    def load(self, shorter: int) -> list[NDArray[np.uint8]]:
        """Pictures (h, w, 3), those larger scaled down until the shorter side has this many pixels."""
        return [_read(path, shorter) for path in self.pictures]


def find_classes(folder: Path) -> tuple[ClassSet, list[FileProblem]]:
    """All pictures with the class of the folder that they are in, and those that can't be read.

    Classes have a folder each, or one each in `train` and `validation` (or `val`, `test`).

    Raises:
        NotFound: No class folders, or none with pictures.
    """
    tops = [folder / name for name in (TRAIN, *HELD_OUT) if (folder / name).is_dir()]
    homes = tops if (folder / TRAIN).is_dir() else [folder]
    names = tuple(sorted({each.name for home in homes for each in home.iterdir() if each.is_dir()}))
    pictures, labels = [], []
    for home in homes:
        for index, name in enumerate(names):
            found = list_pictures(home / name)
            pictures += found
            labels += [index] * len(found)
    if not pictures:
        hint = "Give a folder that holds one folder of pictures per class, or train/ and validation/ of that kind."
        raise NotFound(f"There are no class folders with pictures in {folder}.", hint=hint)
    problems = unreadable(pictures)
    bad = {each.path for each in problems}
    whole = ClassSet(names, tuple(pictures), np.array(labels, np.int64))
    return whole.take([index for index, path in enumerate(pictures) if path not in bad]), problems


def _read(path: Path, shorter: int) -> NDArray[np.uint8]:
    with Image.open(path) as picture:
        pixels = np.asarray(picture.convert("RGB"))
    ratio = shorter / min(pixels.shape[:2])
    if ratio >= 1:
        return pixels
    size = (round(pixels.shape[1] * ratio), round(pixels.shape[0] * ratio))
    return np.asarray(cv2.resize(pixels, size, interpolation=cv2.INTER_AREA))
