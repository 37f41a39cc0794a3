"""Recipes of the planner's pointer networks: convex hulls, and shortest tours of up to ten points.

Knows how the committed weights are made and measured. Both networks have the attention encoder, so that the order of
the points does not matter; both learn an order that starts at the lowest point and runs counter-clockwise.
"""

import hashlib
from abc import abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from pydantic import Field, PrivateAttr
from torch import Tensor, nn

from fovea_planning.models.pointer_net import PointerNet
from fovea_planning.solvers.exact import optimal_tours, tour_lengths
from fovea_planning.solvers.geometry import area, canonical_hull, hull, hull_successors, polygon_is_valid
from fovea_planning.solvers.pointer_solver import normalise_points, predict_hulls, predict_tours
from fovea_recipes.training.recipe import Batch, Recipe, Schedule

_IGNORED = -100


class _Pointer(Recipe):
    """Parts shared by both recipes: a network, and batches of instances of one size."""

    schedule: Schedule = Schedule(
        steps=3000, batch=256, rate=1.5e-3, floor=1e-5, warm_up=200, clamp=0.2, ema=0.999, validate_every=1000
    )
    hidden: int = 64
    layers: int = 3
    smallest: int = Field(5, ge=3, description="Fewest points of an instance.")
    largest: int = Field(10, ge=4, le=12, description="Most points of an instance.")
    test: int = Field(1000, ge=1, description="Instances of each size that are only measured, once.")

    def config(self) -> dict[str, Any]:
        return {"hidden": self.hidden, "layers": self.layers}

    def loss(self, network: nn.Module, batch: Batch) -> Tensor:
        points, slots = batch["points"], batch["slots"]
        known = slots.clamp(min=0)
        logits: Tensor = network(points, known)
        visited = F.one_hot(known, logits.shape[2]).cumsum(1)
        barred = torch.cat((torch.zeros_like(visited[:, :1]), visited[:, :-1]), 1) > 0
        barred[..., 0] = self.endless
        logits = logits.masked_fill(barred & (slots >= 0)[..., None], -torch.inf)
        return F.cross_entropy(logits.flatten(0, 1), slots.flatten(), ignore_index=_IGNORED)

    @property
    @abstractmethod
    def endless(self) -> bool:
        """Whether an order visits all points, so that the end is never chosen."""

    def instances(self, split: int, points: int, count: int) -> np.ndarray:
        """Points (count, n, 2) that no step is trained on."""
        return np.random.default_rng((split, points, 2**40)).random((count, points, 2))

    def size(self, rng: np.random.Generator) -> int:
        """Points of the instances of a batch: larger ones more often, as they are harder."""
        sizes = np.arange(self.smallest, self.largest + 1)
        return int(rng.choice(sizes, p=sizes / sizes.sum()))


class PointerHull(_Pointer, name="pointer-hull", weights="fovea-pointer-hull", dtype="int8"):
    """Convex hulls of 5 to 10 points: about 5 minutes on one free CPU core."""

    @property
    def endless(self) -> bool:
        return False

    def prepare(self, cache: Path) -> str:
        return f"uniform points, seed {self.seed}"

    def batches(self, step: int, rng: np.random.Generator) -> Iterator[Batch]:
        points = rng.random((self.schedule.batch, self.size(rng), 2))
        yield {
            "points": torch.from_numpy(normalise_points(points, stretch=True)),
            "slots": torch.from_numpy(_hull_slots(points)),
        }

    def score(self, network: nn.Module) -> float:
        return float(np.mean(self._exact(cast("PointerNet", network), self.instances(1, 10, 1000))[0]))

    def measure(self, network: nn.Module) -> dict[str, float]:
        found: dict[str, float] = {}
        for points in (5, 8, 10, 15, 20):
            exact, shares, valid = self._exact(cast("PointerNet", network), self.instances(2, points, self.test))
            parts = (("exact", exact), ("area", shares or [0.0]), ("invalid", [not is_valid for is_valid in valid]))
            found |= self.average(**{f"{name}_n{points}": values for name, values in parts})
        return found

    def _exact(self, net: PointerNet, points: np.ndarray) -> tuple[list[bool], list[float], list[bool]]:
        """Which polygons are exact, the share of the true area of those that are valid, and which are."""
        orders, _ = predict_hulls(net.build_inference(), points)
        valid = list(map(polygon_is_valid, points, orders))
        pairs = [(instance, order, hull(instance)) for instance, order in zip(points, orders, strict=True)]
        exact = [ok and canonical_hull(order) == true for ok, (_, order, true) in zip(valid, pairs, strict=True)]
        whole = [pair for ok, pair in zip(valid, pairs, strict=True) if ok]
        return exact, [area(instance, order) / area(instance, true) for instance, order, true in whole], valid


class PointerTour(_Pointer, name="pointer-tour", weights="fovea-pointer-tour", dtype="int8"):
    """Shortest tours of 5 to 10 points: about 6 minutes on one free CPU core."""

    bank: int = Field(40_000, ge=1, description="Labelled instances of each size; turned and mirrored when drawn.")

    _bank: dict[int, tuple[np.ndarray, np.ndarray]] = PrivateAttr(default_factory=dict)

    @property
    def endless(self) -> bool:
        return True

    def prepare(self, cache: Path) -> str:
        state = hashlib.sha256()
        for size in range(self.smallest, self.largest + 1):
            points = self.instances(0, size, self.bank)
            parts = (points[first : first + 2000] for first in range(0, len(points), 2000))
            tours = np.concatenate([optimal_tours(part)[0] for part in parts])
            self._bank[size] = points, tours
            state.update(tours.astype(np.int8).tobytes())
        return f"tours:{state.hexdigest()}"

    def batches(self, step: int, rng: np.random.Generator) -> Iterator[Batch]:
        points, tours = self._bank[self.size(rng)]
        chosen = rng.integers(len(points), size=self.schedule.batch)
        turned = points[chosen] - 0.5
        turned *= rng.choice([-1.0, 1.0], size=(len(chosen), 1, 2))
        turned = np.where(rng.random((len(chosen), 1, 1)) < 0.5, turned[..., ::-1], turned)
        yield {
            "points": torch.from_numpy(normalise_points(turned, stretch=False)),
            "slots": torch.from_numpy(_tour_slots(turned, tours[chosen])),
        }

    def score(self, network: nn.Module) -> float:
        return -float(self._ratio(cast("PointerNet", network), self.instances(1, 10, 500), 8).mean())

    def measure(self, network: nn.Module) -> dict[str, float]:
        found = {}
        for points in (5, 8, 10):
            held = self.instances(2, points, self.test)
            for name, width in (("greedy", 1), ("beam8", 8)):
                found[f"ratio_{name}_n{points}"] = self._ratio(cast("PointerNet", network), held, width)
        return self.average(**found)

    def _ratio(self, net: PointerNet, points: np.ndarray, width: int) -> NDArray[np.float64]:
        """Length of each tour over that of the shortest."""
        lengths = tour_lengths(points, predict_tours(net.build_inference(), points, width))
        return np.asarray(lengths / optimal_tours(points)[1])


def _hull_slots(points: np.ndarray) -> np.ndarray:
    """Slots (b, n + 1) of hulls from the lowest point, then the end, then ignored ones."""
    batch, n = points.shape[:2]
    following, rows = hull_successors(points), np.arange(batch)
    slots = np.full((batch, n + 1), _IGNORED)
    start = at = points[..., 1].argmin(1)
    going = np.ones(batch, bool)
    for place in range(n + 1):
        back = (at == start) & (place > 0)
        slots[going & back, place] = 0
        going &= ~back
        slots[going, place] = at[going] + 1
        at = np.where(going, following[rows, at], at)
    return slots


def _tour_slots(points: np.ndarray, tours: np.ndarray) -> np.ndarray:
    """Slots (b, n) of tours from the lowest point, counter-clockwise."""
    n = points.shape[1]
    visited = np.take_along_axis(points, tours[..., None], 1)
    x, y = visited[..., 0], visited[..., 1]
    backwards = (x * np.roll(y, -1, 1) - np.roll(x, -1, 1) * y).sum(1) < 0
    tours = np.where(backwards[:, None], tours[:, ::-1], tours)
    heights = np.take_along_axis(points[..., 1], tours, 1)
    places = (heights.argmin(1)[:, None] + np.arange(n)) % n
    return np.asarray(np.take_along_axis(tours, places, 1) + 1)
