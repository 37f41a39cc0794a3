"""Searches of people on collages, and a policy of seven numbers that knows nothing but places: what OAT is measured by.

Knows the file of the STI data set: per collage its size, the box of the sought cover, and each person's fixations in
pixels. Covers stand in a grid, so a fixation is a cell of it. There are no pictures.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import logsumexp

from fovea.errors import NotFound

Grid = tuple[int, int]
Numbers = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Collage:
    """A collage that was searched: the cell of the sought cover, row by row, and the fixated cells of each person."""

    name: str
    target: int
    paths: tuple[tuple[int, ...], ...]


def read_collages(folder: Path, grid: Grid, longest: int) -> list[Collage]:
    """All collages of a folder, in the order of their names; paths end after `longest` fixations.

    Raises:
        NotFound: There is no such file.
    """
    found = []
    for file in sorted(folder.glob("*.json")):
        for name, held in sorted(json.loads(file.read_text("utf8")).items()):
            size, box = held["size"], held["ground_truth"][0]
            shape = (size["width"], size["height"])
            middle = ((box["xmin"] + box["xmax"]) / 2, (box["ymin"] + box["ymax"]) / 2)
            paths = [_cells(points, shape, grid)[:longest] for points in held["fixations"].values()]
            found.append(Collage(name, _cells([middle], shape, grid)[0], tuple(path for path in paths if path)))
    if not found:
        raise NotFound(f"There are no searches (.json) in {folder}.", hint="Give the folder of the STI data set.")
    return found


def _cells(points: Sequence[Sequence[float]], shape: tuple[float, float], grid: Grid) -> tuple[int, ...]:
    places = np.asarray(points, float).reshape(-1, 2)[:, ::-1] / shape[::-1] * grid
    row, column = np.clip(places.astype(int), 0, np.array(grid) - 1).T
    cells: list[int] = (row * grid[1] + column).tolist()
    return tuple(cells)


@dataclass(frozen=True, slots=True)
class SpatialPolicy:
    """Where a search goes next on a grid of n cells, by places alone.

    The weights (7,) are of the jump's distance, the distance to the target, staying, the target, seen cells, ending on
    the target, and ending elsewhere.
    """

    grid: Grid
    weights: Numbers

    def logits(self, fixations: NDArray[np.int64], targets: NDArray[np.int64]) -> Numbers:
        """Logits (p, n + 2) after fixations so far (p, t), with n for the end and n + 1 for padding."""
        inside = describe_cells(self.grid, fixations, targets) @ self.weights
        return np.column_stack([inside, np.full(len(inside), -np.inf)])


def describe_cells(grid: Grid, fixations: NDArray[np.int64], targets: NDArray[np.int64]) -> Numbers:
    """Features (p, n + 1, 7) that the policy sees of each cell and of the end; fixations outside count as the last."""
    count, places = len(targets), grid[0] * grid[1]
    cells = np.stack(np.divmod(np.arange(places), grid[1]), 1).astype(float)
    fixations = np.clip(fixations, 0, places - 1)
    at = fixations[:, -1] if fixations.shape[1] else np.full(count, grid[0] // 2 * grid[1] + grid[1] // 2)
    known, everyone = np.zeros((count, places + 1, 7)), np.arange(count)
    known[:, :places, 0] = np.linalg.norm(cells[at][:, None] - cells, axis=2)
    known[:, :places, 1] = np.linalg.norm(cells[targets][:, None] - cells, axis=2)
    known[everyone, at, 2] = fixations.shape[1] > 0
    known[everyone, targets, 3] = 1
    np.put_along_axis(known[:, :, 4], fixations, 1, axis=1)
    known[:, places, 5], known[:, places, 6] = at == targets, at != targets
    return known


def fit_policy(collages: Sequence[Collage], grid: Grid) -> SpatialPolicy:
    """The likeliest weights."""
    end, rows, chosen = grid[0] * grid[1], [], []
    for each in collages:
        for path in each.paths:
            for step, cell in enumerate([*path, end]):
                rows.append(describe_cells(grid, np.array([path[:step]], np.int64), np.array([each.target]))[0])
                chosen.append(cell)
    known, index = np.stack(rows), np.array(chosen)
    taken = known[np.arange(len(known)), index]

    def loss(weights: Numbers) -> tuple[float, Numbers]:
        logits = known @ weights
        odds = np.exp(logits - logsumexp(logits, axis=1, keepdims=True))
        slope = (np.einsum("pn,pnk->pk", odds, known) - taken).mean(axis=0)
        return float((logsumexp(logits, axis=1) - taken @ weights).mean()), slope

    return SpatialPolicy(grid, np.asarray(minimize(loss, np.zeros(known.shape[2]), jac=True).x))
