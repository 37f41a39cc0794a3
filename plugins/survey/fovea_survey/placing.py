"""Which pictures of a survey have a place that can be believed, and which names tell them apart."""

import datetime as dt
import re
import string
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

from fovea_survey.geodesy import to_space
from fovea_survey.schemas import Observation

SMALL_PART = 20
"""A group of pictures is an outlier if it has at most this part of the largest group's number, or is alone."""

NO_PLACE = "The file states no GPS position."


@dataclass(frozen=True)
class Placed:
    """Pictures with a place in order of time, those without a time by name; and why the others have none, by place."""

    driven: list[Observation]
    problems: dict[int, str]
    notes: list[str]


def drive_in_order(observations: Sequence[Observation]) -> list[Observation]:
    """Return pictures with a place in order of time; those without a time follow, by name: `9.jpg` before `10.jpg`."""
    placed = [one for one in observations if one.latitude is not None and one.longitude is not None]
    return sorted(placed, key=lambda one: (one.time is None, _stamp(one.time) if one.time else 0.0, *_by_name(one)))


def _stamp(time: dt.datetime) -> float:
    """Seconds since 1970; a time without a zone counts as UTC."""
    return (time if time.tzinfo else time.replace(tzinfo=dt.UTC)).timestamp()


def _by_name(one: Observation) -> tuple[list[tuple[int, str]], str]:
    """A name's place among others, its numbers by their values."""
    parts = re.findall(r"[0-9]+|[^0-9]+", one.name)
    return [(int(part), "") if part[0] in string.digits else (-1, part) for part in parts], one.name


def place_pictures(observations: Sequence[Observation], far_m: float) -> Placed:
    """Sort out which pictures have a place: a position that is far from nearly all others is not believed."""
    stated = [n for n, one in enumerate(observations) if one.latitude is not None and one.longitude is not None]
    known = set(stated)
    problems = {n: one.place_problem or NO_PLACE for n, one in enumerate(observations) if n not in known}
    points = [(observations[n].latitude or 0.0, observations[n].longitude or 0.0) for n in stated]
    groups = group_near(points, far_m) if far_m and len(points) > 1 else np.zeros(len(points), np.intp)
    sizes = Counter(groups.tolist())
    main, largest = sizes.most_common(1)[0] if sizes else (0, 0)
    limit = max(1, largest // SMALL_PART) if largest > 1 else 0
    far = [n for n, group in zip(stated, groups.tolist(), strict=True) if sizes[group] <= limit and group != main]
    problems |= dict.fromkeys(far, f"It lies more than {far_m / 1000:g} km from nearly all others (option `far_m`).")
    notes = []
    if (apart := sum(size > limit for size in sizes.values())) > 1:
        notes.append(f"The pictures lie in {apart} areas that are more than {far_m / 1000:g} km apart.")
    driven = drive_in_order([one for n, one in enumerate(observations) if n not in problems])
    return Placed(driven, dict(sorted(problems.items())), notes)


def group_near(points: Sequence[tuple[float, float]], far_m: float) -> NDArray[np.intp]:
    """Return the group of each point of latitude and longitude: neighbours at most about `far_m` apart share one.

    Points are counted by cells of a grid in space, so that memory does not grow with the pairs; points in neighbouring
    cells share a group, which joins some that are up to 3.5 times as far apart. A point without any neighbour is alone.
    """
    space = to_space(points)
    cells, member = np.unique(np.floor(space / far_m).astype(np.int64), axis=0, return_inverse=True)
    pairs = cKDTree(cells).query_pairs(1.8, output_type="ndarray")
    edges = coo_array((np.ones(len(pairs), bool), (pairs[:, 0], pairs[:, 1])), shape=(len(cells), len(cells)))
    _, labels = connected_components(edges, directed=False)
    groups = np.asarray(labels[member.ravel()], np.intp)
    nearest = cKDTree(space).query(space, k=min(2, len(space)))[0].reshape(len(space), -1)[:, -1]
    alone = np.flatnonzero(nearest > far_m)
    groups[alone] = groups.max(initial=0) + 1 + np.arange(len(alone))
    return groups


def name_apart(observations: Sequence[Observation]) -> list[Observation]:
    """Return the pictures with a name for each: the second `a.jpg` becomes `a.jpg (2)`."""
    names = make_unique([one.name for one in observations])
    return [
        one if one.name == name else one.model_copy(update={"name": name})
        for one, name in zip(observations, names, strict=True)
    ]


def make_unique(names: Sequence[str]) -> list[str]:
    """Return names of which none is there twice; repeated ones get a number."""
    taken, count, found = set(names), Counter[str](), []
    for name in names:
        count[name] += 1
        chosen = name
        while count[name] > 1 and chosen in taken:
            chosen = f"{name} ({count[name]})"
            count[name] += chosen in taken
        taken.add(chosen)
        found.append(chosen)
    return found
