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

from fovea.errors import NotFound
from fovea_recipes.training.data.splits import HELD_OUT, TRAIN
from fovea_recipes.training.data.survey import FileProblem, list_pictures, list_unread, read_picture, unreadable


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
    sides = {each.name.lower(): each for each in _folders(folder)}
    is_split = TRAIN in sides and bool(_folders(sides[TRAIN]))  # else `train` is a class, as of vehicles
    homes = [sides[name] for name in (TRAIN, *HELD_OUT) if name in sides] if is_split else [folder]
    classes = [each for home in homes for each in _folders(home)]
    found = {path: each.name for each in classes for path in list_pictures(each)}
    if not found:
        hint = "Give a folder that holds one folder of pictures per class, or train/ and validation/ of that kind."
        raise NotFound(f"There are no class folders with pictures in {folder}.", hint=hint)
    problems = unreadable(list(found))
    kept = {path: found[path] for path in found.keys() - {each.path for each in problems}}
    names = sorted({*kept.values()})
    empty = [each for each in classes if each.name not in names]
    problems += [FileProblem(each, "has no picture, so it is no class") for each in empty]
    loose = [path for path in list_pictures(folder) if path not in found]
    problems += [FileProblem(path, "is in no folder of a class, left out") for path in loose]
    problems += list_unread(folder)
    pictures = tuple(path for path in found if path in kept)
    labels = np.array([names.index(kept[path]) for path in pictures], np.int64)
    return ClassSet(tuple(names), pictures, labels), problems


def _folders(folder: Path) -> list[Path]:
    """Folders in a folder that are not hidden, in the order of their names."""
    return [each for each in sorted(folder.iterdir()) if each.is_dir() and each.name[0] != "."]


def _read(path: Path, shorter: int) -> NDArray[np.uint8]:
    pixels = read_picture(path)
    ratio = shorter / min(pixels.shape[:2])
    if ratio >= 1:
        return pixels
    size = (round(pixels.shape[1] * ratio), round(pixels.shape[0] * ratio))
    return np.asarray(cv2.resize(pixels, size, interpolation=cv2.INTER_AREA))
