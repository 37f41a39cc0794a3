"""Pictures and masks in folders: pairs by file name, masks of one bit, grey levels, 16 bits or a palette, or COCO's.

Knows files; knows no model.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fovea.errors import NotFound
from fovea_recipes.training.data.coco_masks import draw_coco_masks
from fovea_recipes.training.data.survey import FileProblem, compose_name, list_pictures, list_unread, read_picture

Pixels = NDArray[np.uint8]

MASKS = ("masks", "mask", "labels", "annotations")
"""Names of folders of masks; pictures are in any other folder."""

IMAGES = ("images", "image", "img", "imgs", "jpegimages")
"""Names of folders of pictures that say no more than that."""

ENDINGS = ("_mask", "-mask", "_seg", "_label")
"""Endings of a mask's name after that of its picture."""

FEW = 16
"""Grey masks whose largest value is no larger hold numbers of classes, not grey levels."""

NO_MASK = "has no mask, left out"

VOID = 255
"""Next to numbers of classes: pixels that nobody labelled."""


@dataclass(frozen=True, slots=True)
class MaskSet:
    """Pictures and their masks, one path each, in the order of their names."""

    pictures: tuple[Path, ...]
    masks: tuple[Path, ...]

    def __len__(self) -> int:
        return len(self.pictures)

    @property
    def digest(self) -> str:
        """The sha256 over names and bytes of all files."""
        total = hashlib.sha256()
        for path in (*self.pictures, *self.masks):
            total.update(path.name.encode() + hashlib.sha256(path.read_bytes()).digest())
        return total.hexdigest()

    def take(self, indices: Sequence[int] | NDArray[np.int64]) -> MaskSet:
        """Some of the pairs."""
        return MaskSet(tuple(self.pictures[i] for i in indices), tuple(self.masks[i] for i in indices))

    def load(self, side: int) -> tuple[Pixels, Pixels]:
        """Pictures (n, side, side, 3) and masks (n, side, side), both squashed by an antialiased bilinear filter.

        Masks become soft at their edges; a hard mask is `masks > 128`.
        """
        if not len(self):
            return np.empty((0, side, side, 3), np.uint8), np.empty((0, side, side), np.uint8)
        pictures = [_squashed(Image.fromarray(read_picture(path)), side) for path in self.pictures]
        return np.stack(pictures), self.load_masks(side)

    def load_masks(self, side: int) -> Pixels:
        """The masks of `load`, at least one."""
        return np.stack([_squashed(Image.fromarray(read_mask(path)), side) for path in self.masks])


def find_masks(folder: Path, drawn: Path | None = None, names: Sequence[str] = ()) -> tuple[MaskSet, list[FileProblem]]:
    """The pairs below a folder, and the pictures that have no mask.

    Where there is no pair, COCO files are read, and their masks of all classes, or those of `names`, are written to
    `drawn`; without it, such files are not read.

    Raises:
        NotFound: There is no pair at all.
        InvalidOption: A JSON file can't be read, or has no class of a name.
    """
    files = list_pictures(folder)
    masks = {_place(path, folder): path for path in files if is_mask(path, folder)}
    pictures = [path for path in files if not is_mask(path, folder)]
    pairs = [(path, masks[_place(path, folder)]) for path in pictures if _place(path, folder) in masks]
    problems = [FileProblem(path, NO_MASK) for path in pictures if _place(path, folder) not in masks]
    used = {mask for _, mask in pairs}
    problems += [FileProblem(mask, "has no picture, left out") for mask in masks.values() if mask not in used]
    if not pairs and drawn is not None:
        pairs, problems = draw_coco_masks(folder, pictures, drawn, names)
    if not pairs:
        hint = "Give images/ and masks/, train/ and validation/ with both, or pictures with a COCO file (.json)."
        raise NotFound(f"There are no pictures with masks in {folder}.", hint=hint)
    first, second = zip(*pairs, strict=True)
    return MaskSet(first, second), problems + list_unread(folder)


def read_mask(path: Path) -> Pixels:
    """A mask (h, w) as 0 to 255: marked pixels are 255, grey levels between are shares.

    Palettes, masks of two values, and those with few small numbers, hold classes: whatever is not 0 is marked, but for
    the 255 of no class next to them. So is what has a colour; what is transparent is not. 16 bits are scaled down.
    """
    with Image.open(path) as picture:
        mode = picture.mode
        values = np.asarray(picture if mode in {"1", "P", "L", "I", "I;16", "F"} else _levels(picture))
    levels = np.unique(values)
    if len(levels) > 2 and levels[-1] == VOID and levels[-2] <= FEW:
        values = np.where(values == VOID, 0, values)
    if mode in {"1", "P"} or values.max(initial=0) <= FEW or len(levels) <= 2:
        return np.where(values > 0, 255, 0).astype(np.uint8)
    if values.dtype != np.uint8:
        return np.clip(values.astype(np.float64) / (257 if values.max() > 255 else 1), 0, 255).round().astype(np.uint8)
    return values


def _levels(picture: Image.Image) -> Pixels:
    """Grey levels (h, w) of a mask in colour on black: 255 for all colours but shades of grey."""
    layers = np.asarray(picture.convert("RGBA"))
    colour, alpha = layers[..., :3], layers[..., 3]
    dark, light = colour.min(axis=2), colour.max(axis=2)
    return np.where(alpha < 128, 0, np.where(light - dark > FEW, 255, light)).astype(np.uint8)


def is_mask(path: Path, folder: Path) -> bool:
    """Whether a file below a folder is a mask, by the names of its folders or its own."""
    return any(part.lower() in MASKS for part in path.relative_to(folder).parts[:-1]) or path.stem.endswith(ENDINGS)


def folders_of(path: Path, folder: Path) -> tuple[str, ...]:
    """Folders below `folder` that a picture and its labels share: all but for `images`, `masks` and the like."""
    parts = map(compose_name, path.relative_to(folder).parts[:-1])
    return tuple(part for part in parts if part.lower() not in {*MASKS, *IMAGES})


def _place(path: Path, folder: Path) -> tuple[str, ...]:
    """Name shared by a picture and its mask: folders, and the name without its ending."""
    stem = next((path.stem.removesuffix(end) for end in ENDINGS if path.stem.endswith(end)), path.stem)
    return (*folders_of(path, folder), compose_name(stem))


def _squashed(picture: Image.Image, side: int) -> Pixels:
    return np.asarray(picture.resize((side, side), Image.Resampling.BILINEAR))
