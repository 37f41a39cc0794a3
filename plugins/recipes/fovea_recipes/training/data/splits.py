"""Which pictures are held out: told by folders, by a list, by a pattern, or drawn by group so that kin stay together.

Knows file names; knows no label and no model.
"""

import re
from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fovea.errors import InvalidOption
from fovea_recipes.training.data.survey import compose_name, read_text

TRAIN = "train"

HELD_OUT = ("validation", "valid", "val", "test")
"""Names of folders next to `train`, or of lists `<name>.txt`: all that are there are held out."""


def held_out(
    paths: Sequence[Path], folder: Path, *, pattern: str = "", group_by: str = "", share: float = 0.15, seed: int = 1
) -> NDArray[np.bool_]:
    """Whether each picture (n,) of a data set is held out.

    A pattern of names decides where one is given; then folders `train` and `validation`; then a list `val.txt`; else
    groups are drawn until the share of pictures is reached. The first group, or the whole match, of `group_by` in a
    file's name says what belongs together: a patient, a road; without it each picture is a group of its own.

    Raises:
        InvalidOption: A pattern can't be read, or one of the two sides is empty.
    """
    found = _decided(paths, folder, pattern)
    if found is None:
        found = _drawn([group_of(path, group_by) for path in paths], share, seed)
    if len(paths) and (found.all() or not found.any()):
        side = "train on" if found.all() else "hold out"
        hint = "Give another pattern or share, more groups, or folders `train` and `validation`."
        raise InvalidOption(f"Nothing is left to {side} of {len(paths)} pictures in {folder}.", hint=hint, field="data")
    return found


def group_of(path: Path, pattern: str) -> str:
    """Group of a picture; its own name where the pattern is empty or does not match.

    Raises:
        InvalidOption: The pattern is not a regular expression.
    """
    if not pattern:
        return str(path)
    found = _compiled(pattern, "group_by").search(path.name)
    return found[1 if found.lastindex else 0] if found else str(path)


def _decided(paths: Sequence[Path], folder: Path, pattern: str) -> NDArray[np.bool_] | None:
    """The split that a pattern, folders or a list define; None where there is none of them."""
    if pattern:
        compiled = _compiled(pattern, "held_out")
        return np.array([bool(compiled.search(path.name)) for path in paths])
    sides = [_side_of(path, folder) for path in paths]
    if TRAIN in sides and set(sides) & {*HELD_OUT}:
        return np.array([side in HELD_OUT for side in sides])
    if lists := [file for name in HELD_OUT if (file := folder / f"{name}.txt").exists()]:
        return _listed(paths, [line.strip() for file in lists for line in read_text(file).splitlines()])
    return None


def _side_of(path: Path, folder: Path) -> str | None:
    """The first of a picture's folders that names a side, perhaps with a year: below are classes, as `train/valid`."""
    names = (re.sub(r"\d{4}$", "", part.lower()) for part in path.relative_to(folder).parts[:-1])
    return next((name for name in names if name in {TRAIN, *HELD_OUT}), None)


def _listed(paths: Sequence[Path], lines: Sequence[str]) -> NDArray[np.bool_]:
    """Which pictures the lines of a list name, with or without ending; of one name those whose folders fit best."""
    places: dict[str, list[int]] = {}
    for index, path in enumerate(paths):
        places.setdefault(compose_name(path.stem), []).append(index)
    found = np.zeros(len(paths), bool)
    for named in (Path(compose_name(line).replace("\\", "/")) for line in lines if line):
        alike = places.get(named.name) or places.get(named.stem, [])
        shared = [_shared_folders(paths[index], named) for index in alike]
        found[[index for index, count in zip(alike, shared, strict=True) if count == max(shared)]] = True
    return found


def _shared_folders(first: Path, second: Path) -> int:
    """How many folders two paths have in common, from the file upwards."""
    pairs = zip(first.parts[-2::-1], second.parts[-2::-1], strict=False)
    return len([*takewhile(lambda pair: pair[0] == pair[1], pairs)])


def _drawn(groups: Sequence[str], share: float, seed: int) -> NDArray[np.bool_]:
    """Whole groups in a drawn order, until about the share of the pictures is reached."""
    names, index, counts = np.unique(np.array(groups), return_inverse=True, return_counts=True)
    order = np.random.default_rng(seed).permutation(len(names))
    before = np.cumsum(counts[order]) - counts[order]
    return np.isin(index, order[before < share * len(groups)])


def _compiled(pattern: str, field: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except re.error as error:
        hint = "For example '_(RS_[0-9]+)_': its first group is what belongs together."
        raise InvalidOption(f"{pattern!r} is not a pattern: {error}.", hint=hint, field=field) from error
