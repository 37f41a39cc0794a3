"""Recipe of OAT on searches of people: measured next to other people and a policy of places, never shipped.

The data set has no pictures, so every cover looks the same to the network: it learns from places alone.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from pydantic import Field, PrivateAttr
from scipy.special import log_softmax
from torch import Tensor, nn

from fovea_planning.gaze.metrics import behaviour, behaviour_delta, sequence_score
from fovea_planning.gaze.scanpaths import decode_scanpaths
from fovea_planning.models.object_attention import ObjectAttention, grid_cells
from fovea_planning.models.positions import fitted_positions
from fovea_recipes.detection.collages import Collage, fit_policy, read_collages
from fovea_recipes.training.intervals import bootstraps
from fovea_recipes.training.recipe import Batch, Recipe, Schedule

Walk = Sequence[int]
Logits = Callable[[NDArray[np.int64], NDArray[np.int64]], NDArray[Any]]
"""Fixations so far (p, t) and targets (p,) → logits (p, n + 2) of the next."""

_WIDTH = 128


class OatGaze(Recipe, name="oat-gaze", weights="oat-gaze", builds="oat"):
    """OAT, slim, on searches of people on collages of book covers (STI)."""

    schedule: Schedule = Schedule(
        steps=500, batch=32, rate=5e-4, floor=1e-5, warm_up=50, decay=0.01, clamp=0.5, ema=0.99, validate_every=100
    )
    data: Path = Field(description="The STI data set's book-covers.json.")
    grid: tuple[int, int] = Field((6, 14), description="Rows and columns of covers.")
    longest: int = Field(40, ge=2, description="Fixations after which a path is cut.")
    held_out: int = Field(16, ge=1, description="Collages that are only measured.")
    choose: int = Field(8, ge=1, description="Collages that choose the checkpoint.")

    _train: list[Collage] = PrivateAttr(default_factory=list)
    _choose: list[Collage] = PrivateAttr(default_factory=list)
    _out: list[Collage] = PrivateAttr(default_factory=list)

    @property
    def places(self) -> int:
        """Cells n of the grid; n itself ends a path, n + 1 fills it up."""
        return self.grid[0] * self.grid[1]

    def config(self) -> dict[str, Any]:
        table = fitted_positions(max(*self.grid, 3), -(-_WIDTH // 6)).round(4).tolist()
        slim = {"model": _WIDTH, "layers": 2, "feedforward": 256, "crop": (48, 32)}
        return {"grid": self.grid, "position_table": table, **slim}

    def prepare(self, cache: Path) -> str:
        known = read_collages(self.data, self.grid, self.longest)
        order = [known[index] for index in np.random.default_rng(0).permutation(len(known))]
        self._out, rest = order[: self.held_out], order[self.held_out :]
        self._choose, self._train = rest[: self.choose], rest[self.choose :]
        return hashlib.sha256(repr((self._train, self._choose, self._out)).encode()).hexdigest()

    def batches(self, step: int, rng: np.random.Generator) -> Iterator[Batch]:
        some = [self._train[index] for index in rng.integers(len(self._train), size=self.schedule.batch)]
        yield self._batch([(each.target, each.paths[rng.integers(len(each.paths))]) for each in some])

    def _batch(self, searches: Sequence[tuple[int, Walk]]) -> dict[str, Tensor]:
        """Targets (m,) and paths (m, longest + 1), ended where they were not cut."""
        paths = np.full((len(searches), self.longest + 1), self.places + 1)
        for row, (_, path) in zip(paths, searches, strict=True):
            row[: len(path)] = path
            if len(path) < self.longest:
                row[len(path)] = self.places
        return {"target": torch.tensor([target for target, _ in searches]), "path": torch.from_numpy(paths)}

    def loss(self, network: nn.Module, batch: Batch) -> Tensor:
        path = batch["path"]
        logits = self._logits(network, path[:, :-1], batch["target"])
        return F.cross_entropy(logits.flatten(0, 1), path.flatten(), ignore_index=self.places + 1)

    def _logits(self, network: nn.Module, fixations: Tensor, target: Tensor) -> Tensor:
        """Logits (m, t + 1, n + 2) of paths on covers that all look alike."""
        net = cast("ObjectAttention", network)
        alike = torch.zeros(len(target), self.places, net.width, device=target.device)
        cells = grid_cells(self.grid).to(target.device).expand(len(target), -1, -1)
        return net.logits_from_features(alike, cells, target, fixations[:, None])[:, 0]

    @torch.no_grad()
    def score(self, network: nn.Module) -> float:
        return -float(self.loss(network, self._batch([(c.target, path) for c in self._choose for path in c.paths])))

    def measure(self, network: nn.Module) -> dict[str, float]:
        """Scores of the network, of the policy of places and of other people: nats, alignment and behaviour.

        `sequence_score` aligns one drawn path per person with every person's; `_human` aligns people with each other.
        """
        policy = fit_policy([*self._train, *self._choose], self.grid)

        @torch.no_grad()
        def ours(fixations: NDArray[np.int64], targets: NDArray[np.int64]) -> NDArray[Any]:
            seen = self._logits(network, torch.from_numpy(fixations), torch.from_numpy(targets))
            return np.asarray(seen[:, -1])

        rows = [{"sequence_score_human": _agreement(each.paths, None)} for each in self._out]
        delta = {
            "behaviour_delta_human": self._delta([c.paths[::2] for c in self._out], [c.paths[1::2] for c in self._out])
        }
        for name, logits in (("", ours), ("_spatial", policy.logits)):
            nats, drawn = self._nats(logits), self._drawn(logits)
            for row, each, nat, paths in zip(rows, self._out, nats, drawn, strict=True):
                row |= {f"nats{name}": nat, f"sequence_score{name}": _agreement(paths, each.paths)}
            delta[f"behaviour_delta{name}"] = self._delta(drawn, [c.paths for c in self._out])
        for row in rows:
            row["nats_gain"] = row["nats_spatial"] - row["nats"]
        values = {key: np.array([row[key] for row in rows]) for key in rows[0]}
        self._intervals = bootstraps(len(rows), lambda some: {key: float(v[some].mean()) for key, v in values.items()})
        return {key: float(value.mean()) for key, value in values.items()} | delta | {"collages": float(len(rows))}

    def _nats(self, logits: Logits) -> list[float]:
        """Mean cost of a fixation or an end, of each held-out collage."""
        costs = []
        for each in self._out:
            spent = []
            for path in each.paths:
                ends = [self.places] if len(path) < self.longest else []
                for step, cell in enumerate([*path, *ends]):
                    seen = logits(np.array([path[:step]], np.int64), np.array([each.target]))[:, :-1]
                    spent.append(-float(log_softmax(seen[0])[cell]))
            costs.append(float(np.mean(spent)))
        return costs

    def _drawn(self, logits: Logits) -> list[list[Walk]]:
        """As many paths of each held-out collage as there were people."""
        targets = np.array([each.target for each in self._out for _ in each.paths])
        made = decode_scanpaths(
            lambda fixations: logits(fixations, targets), len(targets), self.longest, draw=np.random.default_rng(7)
        )
        paths = iter([found.objects for found in made])
        return [[next(paths) for _ in each.paths] for each in self._out]

    def _delta(self, found: Sequence[Sequence[Walk]], true: Sequence[Sequence[Walk]]) -> float:
        """How far the rates of search, refixation, revisit, length and finding are apart."""
        first, second = (
            [behaviour(path, c.target) for c, paths in zip(self._out, part, strict=True) for path in paths]
            for part in (found, true)
        )
        return behaviour_delta(first, second)

    def facts(self) -> dict[str, str]:
        counts = f"{len(self._train)} collages to train on, {len(self._out)} held out"
        return {
            "data": f"STI, book covers (CC BY-NC-SA 4.0): {counts}",
            "departures": "no pictures of covers: places alone; the same people on both sides; averaged weights (EMA)",
        }


def _agreement(paths: Sequence[Walk], others: Sequence[Walk] | None) -> float:
    """Mean sequence score of all pairs of two groups, or within one."""
    pairs = combinations(paths, 2) if others is None else ((one, other) for one in paths for other in others)
    return float(np.mean([sequence_score(one, other) for one, other in pairs]))
