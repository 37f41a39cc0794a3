"""Plans: who solves what, and what is proven before an answer leaves.

Knows tasks, solvers and their ranges. A learned answer is asked for only inside its trained range, and is always
checked: a hull against Qhull's, a tour for being a permutation and against a lower bound.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from scipy.spatial import QhullError

from fovea.errors import InvalidOption
from fovea_planning.solvers.exact import MAX_EXACT_POINTS, optimal_tours, tour_lengths
from fovea_planning.solvers.geometry import area, canonical_hull, canonical_tour, delaunay, hull
from fovea_planning.solvers.heuristic import heuristic_tour, improve_tour
from fovea_planning.solvers.lower_bound import tour_bound
from fovea_planning.solvers.pointer_inference import PointerInference
from fovea_planning.solvers.pointer_solver import predict_hulls, predict_tours
from shared.registry.weights import Weights, read_weights

Task = Literal["hull", "delaunay", "tsp"]
Solver = Literal["auto", "pointer", "exact", "heuristic"]

TRAINED_SIZES = range(5, 11)
"""Sizes that the pointer networks were trained on; they are never asked about others."""

_EXACT = 10
"""Points up to which `auto` proves a tour: the eleventh would double the time for the twelfth."""

FOLDER = Path(__file__).parent.parent / "weights"


class InvalidPoints(InvalidOption):
    """Points that no plan can be made for; `index` names the first that is wrong."""

    def __init__(self, detail: str, *, index: int | None = None, field: str = "points") -> None:
        super().__init__(detail, hint="Points are [x, y] with finite numbers.", field=field)
        self.index = index


@contextmanager
def name_set(index: int, count: int) -> Iterator[None]:
    """Name the set of a batch, of so many, in what is raised about its points."""
    try:
        yield
    except InvalidPoints as error:
        if count == 1:
            raise
        raise InvalidPoints(f"Set {index} of the batch: {error.detail}", index=error.index, field="batch") from error


@dataclass(frozen=True, slots=True)
class Plan:
    """A verified answer.

    Attributes:
        task: The requested task.
        order: Hull, counter-clockwise from its lowest index; or tour from 0, second index below the last.
        triangles: Corners of each triangle, ascending; triangles by incentre, x then y.
        certified: Whether it is proven to be right (hull, triangles) or shortest (tour).
        solver: The solver that answered: pointer, qhull, exact or heuristic.
        objective: Area of the hull, length of the closed tour; 0 for triangles.
        lower_bound: No tour is shorter; for a hull its area.
        optimality_gap: objective / lower_bound - 1.
        notes: Why somebody else answered than was asked.
        step_probabilities: Of each step of a learned hull.
    """

    task: Task
    order: list[int] | None
    triangles: list[tuple[int, int, int]] | None
    certified: bool
    solver: str
    objective: float
    lower_bound: float
    optimality_gap: float
    notes: list[str] = field(default_factory=list)
    step_probabilities: list[float] | None = None


@dataclass(frozen=True, slots=True)
class Pointers:
    """The trained networks."""

    hull: PointerInference
    tour: PointerInference

    @classmethod
    def of(cls, hull: Weights, tour: Weights) -> Pointers:
        """From verified weights."""
        return cls(PointerInference(hull.arrays), PointerInference(tour.arrays))

    @classmethod
    def load_packaged(cls) -> Pointers | None:
        """The networks of the package; None where they are left out."""
        files = [FOLDER / f"fovea-pointer-{name}.safetensors" for name in ("hull", "tour")]
        return cls.of(*map(read_weights, files)) if all(file.exists() for file in files) else None


def plan(
    task: Task,
    points: np.ndarray | list[list[float]],
    solver: Solver = "auto",
    time_limit: float = 2.0,
    pointers: Pointers | None = None,
) -> Plan:
    """One plan; see `plans`."""
    return plans(task, [points], solver, time_limit, pointers)[0]


def plans(
    task: Task,
    batch: Sequence[np.ndarray | list[list[float]]],
    solver: Solver = "auto",
    time_limit: float = 2.0,
    pointers: Pointers | None = None,
) -> list[Plan]:
    """A plan for each set of points (n, 2): a `hull`, a `delaunay` triangulation or a `tsp` (shortest closed tour).

    The solver `auto` takes the best for each size; another is used where it can be. `time_limit` is in seconds for one
    heuristic tour. The trained networks are read from the package when `pointer` is asked for without them. Raises
    InvalidPoints for points that are not finite, or lie on one line where that makes no sense; InvalidOption for
    another task or solver.
    """
    for name, value, kind in (("task", task, Task), ("solver", solver, Solver)):
        if value not in get_args(kind):
            hint = f"Take one of {', '.join(get_args(kind))}."
            raise InvalidOption(f"There is no {name} {value!r}.", hint=hint, field=name)
    sets: list[np.ndarray] = []
    for index, given in enumerate(batch):
        with name_set(index, len(batch)):
            sets.append(_points(given))
    learned = _learned(task, sets, solver, pointers)
    made: list[Plan] = []
    for index, points in enumerate(sets):
        proposal = learned.get(index)
        notes = _why_not(task, solver, len(points), answered=proposal is not None)
        with name_set(index, len(batch)):
            if task == "tsp":
                made.append(_tour(points, solver, time_limit, proposal, notes))
            else:
                made.append(_flat(task, points, proposal, notes))
    return made


@dataclass(frozen=True, slots=True)
class _Proposal:
    """A network's proposal."""

    order: list[int]
    chances: list[float] | None = None


def _points(points: np.ndarray | list[list[float]]) -> np.ndarray:
    try:
        given = np.asarray(points, float)
    except (TypeError, ValueError) as error:
        raise InvalidPoints(f"points must be (n, 2) numbers: {error}") from error
    if given.ndim != 2 or given.shape[1] != 2 or len(given) == 0:
        raise InvalidPoints(f"points must be (n, 2) with n at least 1, not {given.shape}.")
    if not (finite := np.isfinite(given).all(1)).all():
        index = int(np.flatnonzero(~finite)[0])
        raise InvalidPoints(f"Point {index} is not finite.", index=index)
    if np.abs(given).max() > 1e150:
        index = int(np.abs(given).max(1).argmax())
        raise InvalidPoints(f"Point {index} is too far out: its distances overflow.", index=index)
    return given


def _learned(task: Task, sets: list[np.ndarray], solver: Solver, pointers: Pointers | None) -> dict[int, _Proposal]:
    """Proposals by index, made for all sets of one size at once.

    Where nobody asked for the pointer, it proposes hulls, which are checked anyway, and tours of batches alone.
    """
    wanted = solver == "pointer" or (solver == "auto" and pointers is not None and (task == "hull" or len(sets) > 1))
    if task == "delaunay" or not wanted:
        return {}
    sizes = {len(points) for points in sets} & set(TRAINED_SIZES)
    nets = pointers or (Pointers.load_packaged() if sizes else None)
    found: dict[int, _Proposal] = {}
    for size in sizes:
        indices = [index for index, points in enumerate(sets) if len(points) == size]
        together = np.stack([sets[index] for index in indices])
        found |= dict(zip(indices, _proposals(task, together, nets), strict=True))
    return found


def _proposals(task: Task, points: np.ndarray, nets: Pointers | None) -> list[_Proposal]:
    if nets is None:
        return []
    if task == "tsp":
        return [_Proposal(tour.tolist()) for tour in predict_tours(nets.tour, points)]
    orders, chances = predict_hulls(nets.hull, points)
    return [_Proposal(order, row[: len(order) + 1].tolist()) for order, row in zip(orders, chances, strict=True)]


def _why_not(task: Task, solver: Solver, count: int, *, answered: bool) -> list[str]:
    """Why another solver answers than was asked."""
    if solver == "pointer" and task == "delaunay":
        return ["There is no trained network for triangulations; Qhull answered."]
    if solver == "pointer" and count not in TRAINED_SIZES:
        return [f"{count} points are outside of the trained range, {TRAINED_SIZES[0]} to {TRAINED_SIZES[-1]}."]
    if solver == "pointer" and not answered:
        return ["The trained networks are not installed here."]
    if solver == "exact" and task == "tsp" and count > MAX_EXACT_POINTS:
        return [f"{count} points are too many to prove a tour; {MAX_EXACT_POINTS} is the most."]
    if solver == "heuristic" and (task != "tsp" or count <= 3):
        return ["The exact answer takes no longer than a heuristic one."]
    return []


def _flat(task: Task, points: np.ndarray, proposal: _Proposal | None, notes: list[str]) -> Plan:
    """A hull or triangles, by Qhull; a learned hull counts where it is the same."""
    try:
        if task == "delaunay":
            return Plan(task, None, delaunay(_centred(points)), True, "qhull", 0.0, 0.0, 0.0, notes)
        true = hull(_centred(points))
    except (QhullError, ValueError) as error:
        raise InvalidPoints(f"A {task} needs three points that are not on one line.") from error
    size, solver, chances = area(points, true), "qhull", None
    if proposal is not None:
        if len(proposal.order) > 2 and canonical_hull(proposal.order) == true:
            solver, chances = "pointer", [round(chance, 6) for chance in proposal.chances or []]
        else:
            notes = [*notes, "The network's hull differed from Qhull's, which is the answer."]
    return Plan(task, true, None, True, solver, size, size, 0.0, notes, chances)


def _tour(points: np.ndarray, solver: Solver, seconds: float, proposal: _Proposal | None, notes: list[str]) -> Plan:
    """A tour: proven where it is small, else improved until the time is up, and bounded."""
    n, deadline = len(points), time.monotonic() + seconds
    is_small = solver == "auto" and n <= _EXACT
    if n <= 3 or (solver == "exact" and n <= MAX_EXACT_POINTS) or (is_small and proposal is None):
        return _optimal(points, notes)
    if proposal is not None:
        order_, name = improve_tour(points, proposal.order), "pointer"
    else:
        order_, name = heuristic_tour(points, deadline - 0.3 * seconds), "heuristic"
    known = float(tour_lengths(points, np.asarray(order_)))
    bound = known if known == 0 else tour_bound(points, known, deadline=max(deadline, time.monotonic() + 0.1))
    gap = known / bound - 1 if bound > 0 else 0.0
    if is_small and gap >= 1e-9:  # the bound does not prove the learned tour
        return _optimal(points, notes)
    return Plan("tsp", canonical_tour(order_), None, gap < 1e-9, name, known, bound, gap, notes)


def _optimal(points: np.ndarray, notes: list[str]) -> Plan:
    """The shortest tour, proven."""
    order, length = optimal_tours(_centred(points)[None])
    known = float(length[0])
    return Plan("tsp", canonical_tour(order[0].tolist()), None, True, "exact", known, known, 0.0, notes)


def _centred(points: np.ndarray) -> np.ndarray:
    """Points around their middle: what is small compared to its distance from the origin loses its digits otherwise."""
    return np.asarray(points - points.mean(0))
