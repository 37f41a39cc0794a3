"""Pictures with boxes, as data sets are distributed: Pascal VOC, COCO JSON, YOLO text, or masks whose parts are boxed.

Knows files and their formats; knows no model. Pictures are only opened for their size until they are trained on.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from defusedxml import ElementTree
from numpy.typing import NDArray
from PIL import Image

from fovea.errors import InvalidOption, NotFound
from fovea_recipes.training.data.survey import FileProblem, list_pictures, unreadable

Rows = NDArray[np.float32]
"""(m, 5): class, x1, y1, x2, y2 in pixels of the picture."""


@dataclass(frozen=True, slots=True)
class BoxSet:
    """Pictures in the order of their names with their boxes, and the names of classes by id."""

    names: tuple[str, ...]
    pictures: tuple[Path, ...]
    rows: tuple[Rows, ...]

    def __len__(self) -> int:
        return len(self.pictures)

    @property
    def digest(self) -> str:
        """The sha256 over names, bytes and boxes."""
        total = hashlib.sha256(",".join(self.names).encode())
        for path, rows in zip(self.pictures, self.rows, strict=True):
            total.update(path.name.encode() + hashlib.sha256(path.read_bytes()).digest() + rows.tobytes())
        return total.hexdigest()

    def take(self, indices: Sequence[int] | NDArray[np.int64]) -> BoxSet:
        """Some of the pictures."""
        return BoxSet(self.names, tuple(self.pictures[i] for i in indices), tuple(self.rows[i] for i in indices))

    @property
    def counts(self) -> dict[str, int]:
        """Boxes by class."""
        kinds = np.concatenate([rows[:, 0] for rows in self.rows]) if self.rows else np.empty(0)
        return {name: int((kinds == index).sum()) for index, name in enumerate(self.names)}


def find_boxes(folder: Path, names: Sequence[str] = (), grow: int = 10) -> BoxSet:
    """The data set in a folder; its files say which format it has.

    Args:
        folder: Holds pictures and, next to or below, `.xml` (VOC), `.json` (COCO), `labels/*.txt` (YOLO) or masks.
        names: Classes, where the format does not name them (YOLO without `data.yaml`, masks), or in another order.
        grow: Pixels by which parts of masks grow before they are joined and boxed.

    Raises:
        NotFound: No labels of any of these formats.
    """
    if sorted(folder.rglob("*.xml")):
        return _voc(folder, names)
    if found := sorted(folder.rglob("*.json")):
        return _coco(folder, found[0])
    if sorted(folder.rglob("*.txt")) and (folder / "labels").is_dir():
        return _yolo(folder, names)
    if names and _masks(folder):
        return _masked(folder, names, grow)
    raise NotFound(
        f"There are no boxes in {folder}.",
        hint="Give a folder with Pascal VOC (.xml), COCO (.json), YOLO (labels/*.txt), or masks and names of classes.",
    )


def check_boxes(found: BoxSet) -> tuple[BoxSet, list[FileProblem], list[tuple[int, int]]]:
    """The pictures that can be read with boxes cut to them; what was wrong; and sizes (height, width)."""
    problems = unreadable(found.pictures)
    bad, stay, rows, sizes = {each.path for each in problems}, [], [], []
    for index, path in enumerate(found.pictures):
        if path in bad:
            continue
        with Image.open(path) as picture:
            width, height = picture.size
        cut, wrong = _cut(found.rows[index], width, height)
        if wrong:
            problems.append(FileProblem(path, "has labels outside of the picture or without an area, cut", f"{wrong}"))
        if not len(found.rows[index]):
            problems.append(FileProblem(path, "has no label: taken as a picture of nothing"))
        stay.append(path)
        rows.append(cut)
        sizes.append((height, width))
    return BoxSet(found.names, tuple(stay), tuple(rows)), problems, sizes


def _cut(rows: Rows, width: int, height: int) -> tuple[Rows, int]:
    """Boxes cut to the picture, those without an area gone; and how many were changed or went."""
    inside = np.clip(rows[:, 1:], 0, np.array([width, height] * 2, np.float32))
    good = np.isfinite(inside).all(axis=1) & ((inside[:, 2:] - inside[:, :2]) > 0).all(axis=1)
    wrong = ~good | (np.abs(inside - rows[:, 1:]) > 1).any(axis=1)
    return np.column_stack([rows[good, :1], inside[good]]).astype(np.float32), int(wrong.sum())


def mask_boxes(mask: NDArray[np.uint8], grow: int) -> Rows:
    """Boxes of the connected parts of a mask of class ids (h, w), 0 being nothing; parts closer than `grow` join."""
    rows = []
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * grow + 1, 2 * grow + 1))
    for kind in np.unique(mask[mask > 0]):
        grown = cv2.dilate((mask == kind).astype(np.uint8), kernel)
        _, _, stats, _ = cv2.connectedComponentsWithStats(grown, connectivity=8)
        rows += [(kind - 1, x, y, x + w, y + h) for x, y, w, h, _ in stats[1:].tolist()]
    return np.array(rows, np.float32).reshape(-1, 5)


def _voc(folder: Path, names: Sequence[str]) -> BoxSet:
    pictures, found = [], []
    images = _by_stem(folder)
    for file in sorted(folder.rglob("*.xml")):
        root = ElementTree.parse(file).getroot()
        boxes = []
        for each in root.iter("object"):
            corner = [float(each.findtext(f"bndbox/{side}", "nan")) for side in ("xmin", "ymin", "xmax", "ymax")]
            boxes.append((each.findtext("name", "").strip(), *corner))
        if file.stem in images:
            pictures.append(images[file.stem])
            found.append(boxes)
    known = tuple(names) or tuple(sorted({box[0] for boxes in found for box in boxes}))
    rows = [_rows([(known.index(name), *corner) for name, *corner in boxes if name in known]) for boxes in found]
    return BoxSet(known, tuple(pictures), tuple(rows))


def _coco(folder: Path, file: Path) -> BoxSet:
    held: dict[str, Any] = json.loads(file.read_text())
    kinds = {kind["id"]: kind["name"] for kind in sorted(held["categories"], key=lambda kind: kind["id"])}
    ids = {id_: index for index, id_ in enumerate(kinds)}
    boxes: dict[int, list[tuple[float, ...]]] = {image["id"]: [] for image in held["images"]}
    for each in held["annotations"]:
        x, y, w, h = each["bbox"]
        boxes[each["image_id"]].append((ids[each["category_id"]], x, y, x + w, y + h))
    images = _by_stem(folder)
    listed = sorted(held["images"], key=lambda image: str(image["file_name"]))
    some = [image for image in listed if Path(image["file_name"]).stem in images]
    pictures = tuple(images[Path(image["file_name"]).stem] for image in some)
    return BoxSet(tuple(kinds.values()), pictures, tuple(_rows(boxes[image["id"]]) for image in some))


def _yolo(folder: Path, names: Sequence[str]) -> BoxSet:
    labels = {file.stem: file for file in (folder / "labels").rglob("*.txt")}
    pictures, rows = [], []
    for stem, picture in sorted(_by_stem(folder).items()):
        lines = labels[stem].read_text().split("\n") if stem in labels else []
        with Image.open(picture) as image:
            width, height = image.size
        boxes = []
        for line in filter(str.strip, lines):
            kind, x, y, w, h = (float(value) for value in line.split()[:5])
            low, high = ((x - w / 2) * width, (y - h / 2) * height), ((x + w / 2) * width, (y + h / 2) * height)
            boxes.append((kind, *low, *high))
        pictures.append(picture)
        rows.append(_rows(boxes))
    count = 1 + max((int(each[:, 0].max()) for each in rows if len(each)), default=-1)
    known = tuple(names) or _yolo_names(folder) or tuple(str(index) for index in range(count))
    if count > len(known):
        detail = f"The labels use class {count - 1}, and only {len(known)} classes are named."
        raise InvalidOption(detail, hint="Name all of them in data.yaml or classes.txt.", field="data")
    return BoxSet(known, tuple(pictures), tuple(rows))


def _yolo_names(folder: Path) -> tuple[str, ...]:
    if (file := folder / "classes.txt").exists():
        return tuple(filter(None, file.read_text().splitlines()))
    if (file := folder / "data.yaml").exists():
        found = re.search(r"^names:\s*\[(.*?)\]", file.read_text(), re.MULTILINE | re.DOTALL)
        return tuple(name.strip(" '\"\n") for name in found[1].split(",")) if found else ()
    return ()


def _masks(folder: Path) -> list[tuple[Path, Path]]:
    """Pairs of a picture and its mask: a JPEG next to a PNG of its name."""
    masks = {path.stem: path for path in sorted(folder.rglob("*.png"))}
    pictures = [path for path in sorted(folder.rglob("*")) if path.suffix.lower() in {".jpg", ".jpeg"}]
    return [(path, masks[path.stem]) for path in pictures if path.stem in masks]


def _masked(folder: Path, names: Sequence[str], grow: int) -> BoxSet:
    pairs, rows = _masks(folder), []
    for _, file in pairs:
        with Image.open(file) as mask:
            rows.append(mask_boxes(np.asarray(mask if mask.mode in {"P", "L"} else mask.convert("L")), grow))
    return BoxSet(tuple(names), tuple(picture for picture, _ in pairs), tuple(rows))


def _by_stem(folder: Path) -> dict[str, Path]:
    return {path.stem: path for path in list_pictures(folder)}


def _rows(boxes: Sequence[tuple[float, ...]]) -> Rows:
    return np.array(boxes, np.float32).reshape(-1, 5)
