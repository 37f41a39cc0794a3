"""Recordings of skeletons with named actions (UTKinect-Action3D's text files) as videos of features for BMN.

Knows the files: `joints_<recording>.txt` with a frame number and 20 joints of 3 coordinates a row, and
`actionLabel*.txt` with first and last frame of each action. Knows no network. Features are joints relative to the hip,
scaled by the body's size, and how they move; semantics come from a linear recogniser that never saw the recording.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fovea.errors import NotFound, NotReady
from fovea_recipes.detection.bmn.data import Videos

if TYPE_CHECKING:
    from sklearn.linear_model import LogisticRegression

CELL = 12
"""Frame numbers per cell: 0.4 s of a camera of 30 frames a second."""

CHANNELS = 124
"""Sixty coordinates, sixty speeds, height and speed of the hip, size of the body, and a one."""

CONTEXT = 2
"""Cells to either side that the recogniser sees."""

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Recording:
    """One recording, for example `s01_e02`, where `s01` is the person.

    Joints are (t, 20, 3) in metres, a row per cell of time; spans are first and last cell (k, 2), as numbers between
    cells, with the class of each (k,).
    """

    name: str
    joints: Array
    spans: Array
    kinds: NDArray[np.int64]

    @property
    def person(self) -> str:
        """Who acts."""
        return self.name.partition("_")[0]


def recordings(folder: Path) -> tuple[list[Recording], tuple[str, ...]]:
    """All recordings of a folder, and the names of the actions by class; NotFound if there are no such files."""
    files, labels = sorted(folder.glob("joints_*.txt")), sorted(folder.glob("actionLabel*.txt"))
    if not files or not labels:
        raise NotFound(f"There are no joints_*.txt and actionLabel.txt in {folder}.")
    actions = _labels(labels[-1])
    names = tuple(sorted({name for rows in actions.values() for name, _, _ in rows}))
    return [_recording(file, actions[file.stem.removeprefix("joints_")], names) for file in files], names


def windows(
    some: Sequence[Recording], teachers: Sequence[Recording], count: int, length: int, classes: int, seed: int
) -> Videos:
    """Windows of `length` cells as videos.

    Args:
        some: Where they are cut from.
        teachers: Recordings that the recogniser is trained on; a recording is never judged by one that saw its person.
        count: Windows drawn at random, turned, stretched in time and noisy; 0 cuts all, half overlapping, unchanged.
        length: Cells.
        classes: How many.
        seed: Draws them.
    """
    rng = np.random.default_rng(seed)
    judges = {r.person: _recogniser([t for t in teachers if t.person != r.person], classes) for r in some}
    cut: list[tuple[Array, Array, Array, NDArray[np.int64]]] = []
    if count:
        while len(cut) < count:
            drawn = _changed(some[int(rng.integers(len(some)))], rng)
            start = int(rng.integers(max(1, len(drawn.joints) - length + 1)))
            cut.append(_cut(drawn, start, length, judges[drawn.person]))
    else:
        for each in some:
            starts = range(0, max(1, len(each.joints) - length // 2), length // 2)
            cut += [_cut(each, start, length, judges[each.person]) for start in starts]
    return Videos.stack(each for each in cut if len(each[3]))


def _labels(file: Path) -> dict[str, list[tuple[str, int, int]]]:
    found: dict[str, list[tuple[str, int, int]]] = {}
    name = ""
    for line in file.read_text().splitlines():
        if ":" not in line:
            name = line.strip() or name
            continue
        action, _, frames = line.partition(":")
        numbers = re.findall(r"\d+", frames)
        if len(numbers) == 2:  # one action of the data set was not filmed, and says NaN
            found.setdefault(name, []).append((action.strip(), int(numbers[0]), int(numbers[1])))
    return found


def _recording(file: Path, actions: list[tuple[str, int, int]], names: Sequence[str]) -> Recording:
    table = np.loadtxt(file)
    frames, first = np.unique(table[:, 0], return_index=True)
    flat = table[first, 1:61]
    places = np.arange(frames[0], frames[-1], CELL)
    joints = np.column_stack([np.interp(places, frames, column) for column in flat.T]).reshape(len(places), 20, 3)
    spans = np.array([((a - frames[0]) / CELL, (b - frames[0]) / CELL) for _, a, b in actions])
    kinds = np.array([names.index(name) for name, _, _ in actions])
    return Recording(file.stem.removeprefix("joints_"), joints, spans, kinds)


def _changed(recording: Recording, rng: np.random.Generator) -> Recording:
    """Turned about the vertical, faster or slower, and with a little noise."""
    turn, pace = rng.uniform(-0.6, 0.6), rng.uniform(0.8, 1.25)
    cosine, sine = np.cos(turn), np.sin(turn)
    joints = recording.joints @ np.array([[cosine, 0, sine], [0, 1, 0], [-sine, 0, cosine]])
    places = np.arange(0, len(joints) - 1, pace)
    flat = joints.reshape(len(joints), 60)
    joints = np.column_stack([np.interp(places, np.arange(len(flat)), column) for column in flat.T])
    joints = joints.reshape(len(places), 20, 3) + rng.normal(0, 0.01, (len(places), 20, 3))
    return Recording(recording.name, joints, recording.spans / pace, recording.kinds)


def _cut(
    recording: Recording, start: int, length: int, judge: LogisticRegression
) -> tuple[Array, Array, Array, NDArray[np.int64]]:
    """Features (c, t), scores (s, t), spans (k, 2) in 0..1 and classes (k,) of a window, padded by its last cell."""
    features = _features(recording.joints)
    places = np.minimum(np.arange(start, start + length), len(features) - 1)
    scores = judge.predict_proba(_seen(features))[:, :-1]
    spans = (recording.spans - start) / length
    inside = np.clip(spans, 0, 1)
    stay = (inside[:, 1] - inside[:, 0]) > 0.6 * (spans[:, 1] - spans[:, 0])
    return features[places].T, scores[places].T, inside[stay], recording.kinds[stay]


def _features(joints: Array) -> Array:
    """(t, c)."""
    hip = joints[:, :1]
    size = np.linalg.norm(joints[:, 3] - joints[:, 0], axis=1).mean() + 1e-6  # head less hip
    around = ((joints - hip) / size).reshape(len(joints), 60)
    speed = np.gradient(around, axis=0)
    height = (hip[:, 0, 1:2] - hip[:, 0, 1].mean()) / size
    pace = np.linalg.norm(np.gradient(hip[:, 0], axis=0), axis=1, keepdims=True) / size
    rest = np.column_stack([height, pace, np.full(len(joints), size), np.ones(len(joints))])
    return np.column_stack([around, 3 * speed, rest])


def _seen(features: Array) -> Array:
    """Each cell with its neighbours (t, (2 · context + 1) · c)."""
    places = np.arange(len(features))
    near = [np.clip(places + step, 0, len(features) - 1) for step in range(-CONTEXT, CONTEXT + 1)]
    return np.column_stack([features[index] for index in near])


def _recogniser(some: Sequence[Recording], classes: int) -> LogisticRegression:
    """Probabilities of each class and, last, of none; NotReady without scikit-learn."""
    try:
        from sklearn.linear_model import LogisticRegression  # noqa: PLC0415  # an extra
    except ModuleNotFoundError as error:
        raise NotReady(
            "Recipes of skeletons need scikit-learn.", hint="Try: pip install 'fovea-recipes[samples]'."
        ) from error
    inputs, labels = [], []
    for each in some:
        kind = np.full(len(each.joints), classes)
        for (first, last), label in zip(each.spans, each.kinds, strict=True):
            kind[round(first) : round(last) + 1] = label
        inputs.append(_seen(_features(each.joints)))
        labels.append(kind)
    return LogisticRegression(C=0.02, max_iter=300).fit(np.concatenate(inputs), np.concatenate(labels))
