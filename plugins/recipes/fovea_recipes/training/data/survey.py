"""A look at a data set before anything is trained on it: counts, sizes, what is wrong, and near copies across a split.

Knows files and pixels; knows no model. Files that it names are left out or clipped; nothing is changed on disk.
"""

import unicodedata
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image

from fovea.errors import FoveaError, InvalidOption
from shared.vision.decode import decode
from shared.vision.limits import DecodeBounds, PictureMemory

BOUNDS = DecodeBounds(bytes=2**31, pixels=178_000_000, max_side=2**20, memory=PictureMemory(2**33))
"""Of a picture that is trained on: scans are larger than what a service takes. Pillow's headers go as far."""

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".jfif"})
"""Of the files that count as pictures."""

OTHERS = frozenset({".avif", ".dng", ".gif", ".heic", ".heif", ".jp2", ".jxl"})
"""Of pictures that are not read."""

BITS = 6
"""Of 64: fingerprints that differ in no more bits are of near copies."""

SHOWN = 5
"""Files that a line names before it only counts."""


def list_files(folder: Path, suffixes: Collection[str]) -> list[Path]:
    """Files with these endings in a folder and below, in the order of their names; what is hidden is left out."""
    found = [path for path in sorted(folder.rglob("*")) if path.suffix.lower() in suffixes]
    return [path for path in found if not any(part[0] == "." for part in path.relative_to(folder).parts)]


def list_pictures(folder: Path) -> list[Path]:
    """Pictures in a folder and below, in the order of their names."""
    return list_files(folder, SUFFIXES)


def compose_name(text: str) -> str:
    """A name as it is written on most systems: macOS and its archives write an ü as two letters."""
    return unicodedata.normalize("NFC", text)


def read_text(path: Path) -> str:
    """The text of a file of labels; InvalidOption if it is not in UTF-8."""
    try:
        return path.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InvalidOption(f"{path} is not UTF-8 text.", hint="Save it in UTF-8.", field="data") from error


def read_picture(path: Path) -> NDArray[np.uint8]:
    """A picture (h, w, 3) as services read it: upright, the high byte of 16 bits, transparent parts white.

    Raises:
        FoveaError: It can't be read.
    """
    return decode(path.read_bytes(), BOUNDS).pixels


def picture_size(path: Path) -> tuple[int, int]:
    """Height and width of a picture as `read_picture` gives it, from its header; OSError if that can't be read."""
    with Image.open(path) as picture:
        width, height = picture.size
        # Pillow itself swaps the sides of a TIFF.
        sideways = picture.format != "TIFF" and picture.getexif().get(ExifTags.Base.Orientation, 1) in {5, 6, 7, 8}
    return (width, height) if sideways else (height, width)


@dataclass(frozen=True, slots=True)
class FileProblem:
    """Something wrong with one file; problems are listed by kind, for example `can't be read`."""

    path: Path
    kind: str
    detail: str = ""


def list_unread(folder: Path) -> list[FileProblem]:
    """Pictures in a folder and below whose format is not read."""
    return [FileProblem(path, "is of a format that is not read, left out") for path in list_files(folder, OTHERS)]


@dataclass(frozen=True, slots=True)
class Survey:
    """Summary of a data set: counts, labels by class, sizes (height, width), problems, near copies across the split."""

    train: int
    held_out: int
    classes: Mapping[str, int] = field(default_factory=dict)
    sizes: Sequence[tuple[int, int]] = ()
    problems: Sequence[FileProblem] = ()
    copies: Sequence[tuple[Path, Path]] = ()

    def lines(self) -> Iterator[str]:
        """The summary, a sentence a line."""
        yield f"{self.train} pictures to train on, {self.held_out} held out."
        if self.sizes:
            low, high = min(self.sizes), max(self.sizes)
            middle = tuple(round(median(side)) for side in zip(*self.sizes, strict=True))
            texts = [f"{width}×{height}" for height, width in (low, middle, high)]
            yield f"Sizes: {texts[1]} in the middle, from {texts[0]} to {texts[2]}."
        if self.classes:
            yield "Labels: " + ", ".join(f"{name} {count}" for name, count in self.classes.items()) + "."
        for kind, _ in Counter(each.kind for each in self.problems).most_common():
            found = [each for each in self.problems if each.kind == kind]
            named = ", ".join(f"{each.path.name}{each.detail and f' ({each.detail})'}" for each in found[:SHOWN])
            more = f" and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
            yield f"{kind.capitalize()}: {named}{more}."
        if self.copies:
            named = ", ".join(f"{first.name} and {second.name}" for first, second in self.copies[:SHOWN])
            more = f" and {len(self.copies) - SHOWN} more pairs" if len(self.copies) > SHOWN else ""
            yield (
                f"Near copies on both sides of the split: {named}{more}. What is measured will be too good; "
                "keep what belongs together with --group-by."
            )


def unreadable(paths: Sequence[Path], read: Callable[[Path], object] = read_picture) -> list[FileProblem]:
    """Pictures that `read` can't decode whole."""
    found = []
    for path in paths:
        try:
            read(path)
        except (FoveaError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            found.append(FileProblem(path, "can't be read, left out", str(error).partition(": ")[0][:80]))
    return found


def fingerprint(path: Path) -> int:
    """64 bits that near copies share, a difference hash: each cell of 8×8 brighter than its left neighbour?."""
    picture = Image.fromarray(read_picture(path))
    small = np.asarray(picture.convert("L").resize((9, 8), Image.Resampling.BOX), np.int16)
    bits = (small[:, 1:] > small[:, :-1]).ravel()
    return int.from_bytes(np.packbits(bits).tobytes())


def near_copies(train: Sequence[Path], held_out: Sequence[Path], bits: int = BITS) -> list[tuple[Path, Path]]:
    """Each held-out picture that looks like one to train on, with the nearest of those."""
    if not train or not held_out:
        return []
    first, second = (np.array([fingerprint(path) for path in paths], np.uint64) for paths in (train, held_out))
    found = []
    for index, print_ in enumerate(second):
        apart = np.bitwise_count(first ^ print_)
        if apart[nearest := int(apart.argmin())] <= bits:
            found.append((train[nearest], held_out[index]))
    return found
