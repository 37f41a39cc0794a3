"""Masks from COCO files: outlines and run lengths become one picture of a mask each, which is drawn once.

Knows the format, and that a pixel belongs to an outline where its centre does. Others are named and left
out, the rest is used.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fovea.errors import InvalidOption
from fovea_recipes.training.data.survey import FileProblem, compose_name, list_files, picture_size, read_text

Mask = NDArray[np.bool_]
NEEDED = {"images": {"id", "file_name"}, "categories": {"id", "name"}, "annotations": {"image_id", "category_id"}}
"""Parts of a COCO file, and what each of their entries has."""
IDS = {"id", "image_id", "category_id"}

Found = tuple[list[tuple[Path, Path]], list[FileProblem]]


def draw_coco_masks(folder: Path, pictures: Sequence[Path], drawn: Path, names: Sequence[str] = ()) -> Found:
    """Pairs of a picture and its mask of one bit, written to `drawn`, and what was wrong.

    All classes, or those of `names`, are marked alike. A picture has the labels of all files below `folder` that list
    it; without any its mask is empty. One that no file lists is left out.

    Raises:
        InvalidOption: A file is not JSON, lacks a part, or has no class of a name.
    """
    files = read_coco_files(folder)
    known = {str(kind["name"]) for held in files.values() for kind in held["categories"]}
    if files and (gone := sorted(set(names) - known)):
        detail = f"The COCO files in {folder} have no class {', '.join(gone)}."
        raise InvalidOption(detail, hint=f"Known are {', '.join(sorted(known))}.", field="names")
    masks, problems = dict[Path, Mask](), list[FileProblem]()
    for file, held in files.items():
        _draw(file, held, pictures, set(names) or known, masks, problems)
    pairs = [(path, drawn / f"{'-'.join(path.relative_to(folder).parts)}.png") for path in sorted(masks)]
    drawn.mkdir(parents=True, exist_ok=True)
    for picture, mask in pairs:
        Image.fromarray(masks[picture]).save(mask)
    return pairs, problems


def read_coco_files(folder: Path) -> dict[Path, dict[str, Any]]:
    """Content of the COCO files below a folder; other JSON is left out.

    Raises:
        InvalidOption: A file is not JSON, or lacks a part.
    """
    return {file: held for file in list_files(folder, {".json"}) if (held := _read(file)) is not None}


def _read(file: Path) -> dict[str, Any] | None:
    """Content of a COCO file; None for any other JSON."""
    try:
        held = json.loads(read_text(file))
    except ValueError as error:
        raise InvalidOption(f"{file} is no JSON: {error}.", hint="Mend or remove it.", field="data") from error
    if not isinstance(held, dict) or not all(isinstance(held.get(part), list) for part in NEEDED):
        return None
    for part, needed in NEEDED.items():
        if any(not isinstance(each, dict) or needed - each.keys() for each in held[part]):
            detail = f"Not all {part} of {file} have {' and '.join(sorted(needed))}."
            raise InvalidOption(detail, hint="Write it again with the tool it is from.", field="data")
        for each in held[part]:  # tools write 1, 1.0 and "1" for one id, in one file
            each |= {name: str(each[name]).removesuffix(".0") for name in IDS & each.keys()}
    return held


def _draw(
    file: Path,
    held: Mapping[str, Any],
    pictures: Sequence[Path],
    names: set[str],
    masks: dict[Path, Mask],
    problems: list[FileProblem],
) -> None:
    """Add the labels of one file to the masks of its pictures."""
    kinds = {kind["id"]: str(kind["name"]) for kind in held["categories"]}
    places = dict(find_places(file, held["images"], pictures, problems))
    for path, (height, width) in places.values():
        masks.setdefault(path, np.zeros((height, width), bool))
    listed = {image["id"] for image in held["images"]}
    for each in held["annotations"]:
        name = f"label {each.get('id', '?')}"
        if each["image_id"] not in listed:
            problems.append(FileProblem(file, "has labels of pictures that it does not list, left out", name))
        elif each["category_id"] not in kinds:
            problems.append(FileProblem(file, "has labels of classes that it does not list, left out", name))
        elif each["image_id"] in places and kinds[each["category_id"]] in names:
            path, size = places[each["image_id"]]
            try:
                masks[path] |= _region(each.get("segmentation"), *size)
            except (ValueError, TypeError, KeyError) as error:
                problems.append(FileProblem(file, "has labels that can't be drawn, left out", f"{name}, {error}"))


def find_places(
    file: Path, images: Sequence[Mapping[str, Any]], pictures: Sequence[Path], problems: list[FileProblem]
) -> Iterator[tuple[Any, tuple[Path, tuple[int, int]]]]:
    """Path and (height, width) of every picture that is there and has the size that the file says, by its id."""
    by_name: dict[str, list[Path]] = {}
    for path in pictures:
        by_name.setdefault(compose_name(path.name), []).append(path)
    for image in images:
        named = Path(str(image["file_name"]).replace("\\", "/"))
        if not (alike := by_name.get(compose_name(named.name))):
            problems.append(FileProblem(file.parent / named, "is not there, left out"))
            continue
        # Of pictures of one name the one is meant that ends as the file says, and lies below it.
        ends = {each: each.parts[-len(named.parts) :] != named.parts for each in alike}
        path = min(alike, key=lambda each: (ends[each], not each.is_relative_to(file.parent)))
        try:
            height, width = picture_size(path)
        except (OSError, Image.DecompressionBombError) as error:
            problems.append(FileProblem(path, "can't be read, left out", str(error).partition(":")[0][:80]))
            continue
        said = (image.get("width") or width, image.get("height") or height)
        if said != (width, height):
            detail = f"{width}×{height}, not {said[0]}×{said[1]}"
            problems.append(FileProblem(path, "has another size than its COCO file says, left out", detail))
            continue
        yield image["id"], (path, (height, width))


def _region(segmentation: Any, height: int, width: int) -> Mask:
    """Pixels that a label marks (height, width); ValueError if it is neither outlines nor run lengths of that size."""
    if isinstance(segmentation, dict):
        runs = segmentation["counts"]
        lengths = np.array(_unpacked(runs) if isinstance(runs, str) else runs, np.int64)
        if list(segmentation["size"]) != [height, width] or (lengths < 0).any() or lengths.sum() != height * width:
            raise ValueError("its run lengths do not fill the picture")
        return np.repeat(np.arange(len(lengths)) % 2 == 1, lengths).reshape(width, height).T
    if not segmentation or not isinstance(segmentation, list):
        raise ValueError("it has no outline")
    region = np.zeros((height, width), bool)
    for outline in segmentation:
        corners = np.asarray(outline, float)
        if corners.ndim != 1 or len(corners) < 6 or len(corners) % 2 or not np.isfinite(corners).all():
            raise ValueError("an outline has fewer than three corners")
        region |= fill_outline(corners.reshape(-1, 2) - 0.5, height, width)
    return region


def fill_outline(corners: NDArray[np.float64], height: int, width: int) -> Mask:
    """Pixels (height, width) from whose centres a ray to the left crosses the outline an odd number of times."""
    inside = np.zeros((height, width), bool)
    rows, columns = np.arange(height), np.arange(width)
    for (x, y), (next_x, next_y) in zip(corners, np.roll(corners, -1, axis=0), strict=True):
        crossed = rows[(y <= rows) != (next_y <= rows)]
        at = x + (crossed - y) * (next_x - x) / (next_y - y or 1)
        inside[crossed] ^= columns >= at[:, None]
    return inside


def _unpacked(text: str) -> list[int]:
    """Run lengths of COCO's text: five bits a character, lowest first; from the fourth on, less the last but one.

    Raises:
        ValueError: It ends within a number, or has other characters.
    """
    runs, value, shift = list[int](), 0, 0
    for code in text.encode("ascii"):
        bits = code - 48
        if not 0 <= bits < 64 or shift > 30:
            raise ValueError("its run lengths are no text of COCO's")
        value |= (bits & 31) << shift
        shift += 5
        if not bits & 32:
            signed = value - (1 << shift) if bits & 16 else value
            runs.append(signed + (runs[-2] if len(runs) > 2 else 0))
            value, shift = 0, 0
    if shift:
        raise ValueError("its run lengths end too early")
    return runs
