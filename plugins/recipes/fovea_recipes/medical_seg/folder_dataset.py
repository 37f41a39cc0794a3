"""Folders of pictures and masks, as polyp data sets are distributed: pairs by file name, squashed to one size.

Knows files and PIL; knows nothing about training.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fovea.errors import NotFound

_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp"})


@dataclass(frozen=True, slots=True)
class ImageMaskPairs:
    """Pictures and their masks, one path each, in the order of their names."""

    images: tuple[Path, ...]
    masks: tuple[Path, ...]

    def __len__(self) -> int:
        return len(self.images)

    @property
    def digest(self) -> str:
        """The sha256 over names and bytes of all files."""
        total = hashlib.sha256()
        for path in (*self.images, *self.masks):
            total.update(path.name.encode() + hashlib.sha256(path.read_bytes()).digest())
        return total.hexdigest()

    def take(self, indices: NDArray[np.int64]) -> ImageMaskPairs:
        """Some of the pairs."""
        return ImageMaskPairs(tuple(self.images[i] for i in indices), tuple(self.masks[i] for i in indices))

    def load(self, side: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Pictures (n, side, side, 3) and masks (n, side, side), both squashed by PIL's antialiased bilinear filter.

        Masks become soft at their edges, as in the published training; a hard mask is `masks > 128`.
        """
        return (
            np.stack([_squashed(path, "RGB", side) for path in self.images]),
            np.stack([_squashed(path, "L", side) for path in self.masks]),
        )


def find_pairs(folder: Path) -> ImageMaskPairs:
    """The pairs of `<folder>/images` and `<folder>/masks` (or `image`, `mask`): same name, whatever the suffix.

    Raises:
        NotFound: There is no such folder, or a picture without a mask.
    """
    images, masks = (_by_name(folder, kind) for kind in ("image", "mask"))
    if lonely := sorted(images.keys() ^ masks.keys()):
        raise NotFound(f"{len(lonely)} files of {folder} have no partner, for example {lonely[0]!r}.")
    names = sorted(images)
    return ImageMaskPairs(tuple(images[name] for name in names), tuple(masks[name] for name in names))


def _by_name(folder: Path, kind: str) -> dict[str, Path]:
    for place in (folder / f"{kind}s", folder / kind):
        if place.is_dir():
            found = {path.stem: path for path in place.iterdir() if path.suffix.lower() in _SUFFIXES}
            if found:
                return found
    raise NotFound(f"There are no pictures in {folder / kind}s.", hint="Give a folder that holds images/ and masks/.")


def _squashed(path: Path, mode: str, side: int) -> NDArray[np.uint8]:
    with Image.open(path) as picture:
        return np.asarray(picture.convert(mode).resize((side, side), Image.Resampling.BILINEAR))
