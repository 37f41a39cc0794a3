"""Pictures with boxes, as data sets are distributed: Pascal VOC, COCO JSON, YOLO text, or masks whose parts are boxed.

Knows files and their formats; knows no model. Pictures are only opened for their size until they are trained on.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from defusedxml import ElementTree
from numpy.typing import NDArray
from PIL import Image

from fovea.errors import InvalidOption, NotFound
from fovea_recipes.training.data.coco_masks import find_places, read_coco_files
from fovea_recipes.training.data.mask_folders import VOID, folders_of, read_mask
from fovea_recipes.training.data.survey import (
    FileProblem,
    compose_name,
    list_files,
    list_pictures,
    picture_size,
    read_text,
    unreadable,
)

Rows = NDArray[np.float32]
"""(m, 5): class, x1, y1, x2, y2 in pixels of the upright picture."""

LABELS, CLASSES = "labels", "classes.txt"
"""Name of the folders of YOLO's texts, and of the list of classes in one of them or next to them."""

_NAMES = re.compile(r"^names:\s*(?:#.*\s*)?(?:[\[{]([^\]}]*)[\]}]|((?:\s*(?:-|\d+:).*)+))", re.MULTILINE)
_IN_LINE = re.compile(r"""(?:"[^"]*"|'[^']*'|[^,])+""")
_NAME = re.compile(r"""\s*(?:-\s|(\d+)\s*:)?\s*(?:"([^"]*)"|'([^']*)'|(.*?))(?:\s+#.*)?\s*$""")


@dataclass(frozen=True, slots=True)
class BoxSet:
    """Pictures in the order of their names with their boxes, the names of classes by id, and what was wrong."""

    names: tuple[str, ...]
    pictures: tuple[Path, ...]
    rows: tuple[Rows, ...]
    problems: tuple[FileProblem, ...] = ()

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
        folder: Holds pictures and, next to or below, `.xml` (VOC), `.json` (COCO), `labels/*.txt` (YOLO) or masks. Of
            pictures of one name each has the labels that lie as it does, for example in `train/labels`.
        names: Classes, where the format does not name them (YOLO without `data.yaml`, masks), or in another order.
        grow: Pixels by which parts of masks grow before they are joined and boxed.

    Raises:
        NotFound: No labels of any of these formats.
        InvalidOption: A file of labels can't be read.
    """
    files = list_files(folder, {".xml"})
    if _pair(files, list_pictures(folder), folder)[0]:  # maps' programs write p.tif.aux.xml next to p.tif
        return _voc(folder, files, names)
    if held := read_coco_files(folder):
        return _coco(folder, held, names)
    texts = [file for file in list_files(folder, {".txt"}) if file.name != CLASSES]
    if files := [file for file in texts if LABELS in file.relative_to(folder).parts[:-1]]:
        return _yolo(folder, files, names)
    if names and (masked := _masked_pairs(folder))[0]:
        return _masked(*masked, names, grow)
    hint = "Give a folder with Pascal VOC (.xml), COCO (.json), YOLO (labels/*.txt), or masks and names of classes."
    raise NotFound(f"There are no boxes in {folder}.", hint=hint)


def check_boxes(found: BoxSet) -> tuple[BoxSet, list[FileProblem], list[tuple[int, int]]]:
    """The pictures that can be read with boxes cut to them; what was wrong; and sizes (height, width)."""
    problems = [*found.problems, *unreadable(found.pictures)]
    bad, stay, rows, sizes = {each.path for each in problems}, [], [], []
    for index, path in enumerate(found.pictures):
        if path in bad:
            continue
        height, width = picture_size(path)
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


def _voc(folder: Path, files: Sequence[Path], names: Sequence[str]) -> BoxSet:
    pairs, problems = _pair(files, list_pictures(folder), folder)
    found = {picture: _voc_boxes(file) for picture, file in pairs.items()}
    problems += [
        FileProblem(path, "has no label file, left out") for path in list_pictures(folder) if path not in found
    ]
    known = tuple(names) or tuple(sorted({name for boxes in found.values() for name, *_ in boxes}))
    return _named(known, found, problems)


def _voc_boxes(file: Path) -> list[tuple[Any, ...]]:
    boxes = list[tuple[Any, ...]]()
    try:
        for each in ElementTree.parse(file).getroot().iter("object"):
            corner = [float(each.findtext(f"bndbox/{side}", "nan")) for side in ("xmin", "ymin", "xmax", "ymax")]
            boxes.append((each.findtext("name", "").strip(), *corner))
    except (ElementTree.ParseError, ValueError) as error:
        raise InvalidOption(f"{file} is not Pascal VOC: {error}.", hint="Mend or remove it.", field="data") from error
    if any(not name for name, *_ in boxes):
        raise InvalidOption(f"{file} has an object without a name.", hint="Mend or remove it.", field="data")
    return boxes


def _coco(folder: Path, files: dict[Path, dict[str, Any]], names: Sequence[str]) -> BoxSet:
    kinds = [(len(kind["id"]), kind["id"], str(kind["name"])) for held in files.values() for kind in held["categories"]]
    known, pictures = tuple(names) or tuple(dict.fromkeys(name for *_, name in sorted(kinds))), list_pictures(folder)
    found, problems = dict[Path, dict[tuple[Any, ...], None]](), list[FileProblem]()
    for file, held in files.items():
        called = {kind["id"]: str(kind["name"]) for kind in held["categories"]}
        places = dict(find_places(file, held["images"], pictures, problems))
        listed = {image["id"] for image in held["images"]}
        found |= {path: found.get(path, {}) for path, _ in places.values()}
        for each in held["annotations"]:
            name, label = called.get(each["category_id"]), f"label {each.get('id', '?')}"
            try:
                x, y, w, h = map(float, each["bbox"])
            except (KeyError, TypeError, ValueError):
                problems.append(FileProblem(file, "has labels without a box, left out", label))
                continue
            if each.get("iscrowd"):
                problems.append(FileProblem(file, "has labels of crowds, which are several objects, left out", label))
            elif name is None or each["image_id"] not in listed:
                kind = "has labels of classes or pictures that it does not list, left out"
                problems.append(FileProblem(file, kind, label))
            elif each["image_id"] in places:
                found[places[each["image_id"]][0]][name, x, y, x + w, y + h] = None  # once: keypoints repeat instances
    return _named(known, {path: [*boxes] for path, boxes in sorted(found.items())}, problems)


def _yolo(folder: Path, files: Sequence[Path], names: Sequence[str]) -> BoxSet:
    pictures = list_pictures(folder)
    labels, problems = _pair(files, pictures, folder)
    rows = [_rows(_yolo_boxes(labels[path], *_header(path)) if path in labels else ()) for path in pictures]
    count = 1 + max((int(each[:, 0].max()) for each in rows if len(each)), default=-1)
    known = tuple(names) or _yolo_names(folder) or tuple(str(index) for index in range(count))
    if count > len(known):
        detail = f"The labels use class {count - 1}, and only {len(known)} classes are named."
        raise InvalidOption(detail, hint="Name all of them in data.yaml or classes.txt.", field="data")
    return BoxSet(known, tuple(pictures), tuple(rows), tuple(problems))


def _yolo_boxes(file: Path, height: int, width: int) -> list[tuple[float, ...]]:
    boxes = list[tuple[float, ...]]()
    for number, line in enumerate(read_text(file).splitlines(), 1):
        if line.strip():
            try:
                kind, x1, y1, x2, y2 = _yolo_box([float(word) for word in line.split()])
            except ValueError as error:
                detail = f"Line {number} of {file} is not a YOLO label: {error}."
                raise InvalidOption(detail, hint="Mend or remove it.", field="data") from error
            boxes.append((kind, x1 * width, y1 * height, x2 * width, y2 * height))
    return boxes


def _yolo_box(values: Sequence[float]) -> tuple[float, ...]:
    """Class and corners of a line: class, centre and size, perhaps a score; or class and the corners of an outline."""
    if len(values) < 5 or not 0 <= values[0] < 1e4 or values[0] % 1 or (len(values) > 6 and len(values) % 2 == 0):
        raise ValueError("it is neither a class with a box nor a class with an outline")
    if len(values) > 6:
        return (values[0], min(values[1::2]), min(values[2::2]), max(values[1::2]), max(values[2::2]))
    kind, x, y, w, h = values[:5]
    return (kind, x - w / 2, y - h / 2, x + w / 2, y + h / 2)


def _header(path: Path) -> tuple[int, int]:
    """Height and width; 0 where it can't be read, which `check_boxes` says."""
    try:
        return picture_size(path)
    except (OSError, Image.DecompressionBombError):
        return 0, 0


def _yolo_names(folder: Path) -> tuple[str, ...]:
    """Classes by `classes.txt` or `data.yaml` (a list or numbered, in one line or several); none without a file."""
    for file in (folder / CLASSES, folder / LABELS / CLASSES):
        if file.exists():
            return tuple(filter(None, map(str.strip, read_text(file).splitlines())))
    if not (file := folder / "data.yaml").exists():
        return ()
    found = _NAMES.search(read_text(file))
    in_line, block = found.groups() if found else ("", None)
    items = [each for each in (block.splitlines() if block else _IN_LINE.findall(in_line)) if each.strip()]
    told = [match.groups() for match in map(_NAME.match, items) if match]
    named = {int(number or index): "".join(filter(None, name)) for index, (number, *name) in enumerate(told)}
    if not named or sorted(named) != list(range(len(named))):
        detail = f"{file} does not name the classes from 0 on."
        raise InvalidOption(detail, hint="Write `names: [first, second]`, or a classes.txt.", field="data")
    return tuple(named[index] for index in range(len(named)))


def _masked_pairs(folder: Path) -> tuple[dict[Path, Path], list[FileProblem]]:
    """Masks by picture: a JPEG next to a PNG of its name."""
    pictures = [path for path in list_pictures(folder) if path.suffix.lower() in {".jpg", ".jpeg"}]
    return _pair(list_files(folder, {".png"}), pictures, folder)


def _masked(pairs: dict[Path, Path], problems: list[FileProblem], names: Sequence[str], grow: int) -> BoxSet:
    rows = tuple(mask_boxes(_read_classes(file, len(names)), grow) for file in pairs.values())
    return BoxSet(tuple(names), tuple(pairs), rows, tuple(problems))


def _read_classes(file: Path, count: int) -> NDArray[np.uint8]:
    """A mask (h, w) of numbers of `count` classes, 0 being nothing; of one class whatever single number marks it.

    Raises:
        InvalidOption: It holds other numbers.
    """
    with Image.open(file) as mask:
        values = np.asarray(mask if mask.mode in {"P", "L"} else mask.convert("L"))
    numbers = {*np.unique(values).tolist()} - {0}
    if count == 1 and len(numbers) == 1:
        return (read_mask(file) > 128).astype(np.uint8)
    if wrong := sorted(each for each in numbers - {VOID} or numbers if each > count):
        detail = f"{file} holds the number {wrong[0]}, and only {count} classes are named."
        raise InvalidOption(detail, hint="Masks hold 1 for the first class, 2 for the second.", field="data")
    return np.where(values > count, 0, values).astype(np.uint8)


def _pair(labels: Iterable[Path], pictures: Sequence[Path], folder: Path) -> tuple[dict[Path, Path], list[FileProblem]]:
    """The label file of each picture, in the order of pictures, and label files without one.

    The two have the same name and the same folders. Otherwise the name decides, if only one unlabelled picture has it.
    """
    there = {(compose_name(path.stem), folders_of(path, folder)): path for path in reversed(pictures)}
    places = {(compose_name(label.stem), folders_of(label, folder)): label for label in labels}
    first = {there[place]: label for place, label in places.items() if place in there}
    stems = [(compose_name(path.stem), path) for path in pictures if path not in first]
    alone, by_stem, problems = Counter(stem for stem, _ in stems), dict(stems), list[FileProblem]()
    for label in sorted(set(labels) - set(first.values())):
        if alone[stem := compose_name(label.stem)] == 1:
            first.setdefault(by_stem[stem], label)
        else:
            problems.append(FileProblem(label, "has no picture, left out"))
    return {path: first[path] for path in pictures if path in first}, problems


def _named(names: tuple[str, ...], found: dict[Path, list[tuple[Any, ...]]], problems: list[FileProblem]) -> BoxSet:
    """A set of boxes that begin with their class's name; those of other names are left out."""
    rows = []
    for path, boxes in found.items():
        rows.append(_rows([(names.index(name), *corner) for name, *corner in boxes if name in names]))
        if other := " and ".join(sorted({name for name, *_ in boxes if name not in names})):
            problems.append(FileProblem(path, "has labels of classes that are not named, left out", other))
    return BoxSet(names, tuple(found), tuple(rows), tuple(problems))


def _rows(boxes: Sequence[tuple[float, ...]]) -> Rows:
    return np.array(boxes, np.float32).reshape(-1, 5)
