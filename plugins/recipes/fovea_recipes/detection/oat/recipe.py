"""Recipe of the demo weights of OAT: a small transformer that learns how a known policy searches synthetic shelves.

Knows how the committed weights are made and measured; its numbers say nothing about people.
"""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field, PrivateAttr
from torch import Tensor, nn

from fovea_planning.gaze.metrics import behaviour, behaviour_delta, sequence_score
from fovea_planning.gaze.scanpaths import DecodedScanpath, decode_scanpaths
from fovea_planning.models.object_attention import ObjectAttention, grid_cells
from fovea_planning.models.positions import fitted_positions
from fovea_recipes.detection.oat.data import CROP, LONGEST, Trials, draw_search, noisy, products, trials
from fovea_recipes.training.recipe import Batch, Recipe, Schedule

_GRID = (3, 9)
_WIDTH = 128


class OatDemo(Recipe, name="oat-demo", weights="oat", dtype="int8"):
    """OAT, 0.74 million parameters, on synthetic shelves: about 15 minutes on one CPU core."""

    schedule: Schedule = Schedule(
        steps=5000, batch=32, rate=5e-4, floor=1e-5, warm_up=100, decay=0.01, clamp=0.5, ema=0.999, validate_every=500
    )
    places: int = Field(20, ge=9, le=22, description="Most rows or columns of a grid that the weights serve.")
    other: float = Field(0.5, ge=0, le=1, description="Share of the batches on grids other than 3x9.")
    valid: int = Field(200, ge=1, description="Trials that choose the checkpoint.")
    test: int = Field(500, ge=1, description="Trials that are only measured, once.")

    _products: np.ndarray = PrivateAttr(default_factory=products)

    def config(self) -> dict[str, Any]:
        table = fitted_positions(self.places, -(-_WIDTH // 6)).round(4).tolist()
        return {"grid": _GRID, "position_table": table, "model": _WIDTH, "layers": 2, "feedforward": 256, "crop": CROP}

    def prepare(self, cache: Path) -> str:
        state = hashlib.sha256(self._products.tobytes())
        for seed in (1, 2):
            state.update(self._trials(seed, 10).paths.tobytes())
        return f"shelves:{state.hexdigest()}"

    def batches(self, step: int, rng: np.random.Generator) -> Iterator[Batch]:
        grid = (int(rng.integers(1, 5)), int(rng.integers(3, 11))) if rng.random() < self.other else _GRID
        drawn = trials(rng, self.schedule.batch, grid)
        kinds, items = np.unique(drawn.items, return_inverse=True)
        yield _batch(drawn, noisy(self._products[kinds], rng), items.reshape(drawn.items.shape))

    def loss(self, network: nn.Module, batch: Batch) -> Tensor:
        net, path = cast("ObjectAttention", network), batch["path"]
        places = batch["items"].shape[1]
        features = net.cnn_embedding(batch["pictures"])[batch["items"]]
        logits = net.logits_from_features(features, batch["cells"], batch["target"], path[:, None, :-1])[:, 0]
        return F.cross_entropy(logits.flatten(0, 1), path.flatten(), ignore_index=places + 1)

    @torch.no_grad()
    def score(self, network: nn.Module) -> float:
        held = self._trials(1, self.valid)
        return -float(self.loss(network, _batch(held, self._products, held.items)))

    def measure(self, network: nn.Module) -> dict[str, float]:
        held, rng = self._trials(2, self.test), np.random.default_rng(7)
        net = cast("ObjectAttention", network)
        drawn = [found.objects for found in self._walked(net, held, rng)]
        greedy = [found.objects for found in self._walked(net, held, None)]
        again = Trials(_GRID, held.items, held.targets, draw_search(rng, _GRID, held.items, held.targets))
        true, second = ([part.path(index) for index in range(self.test)] for part in (held, again))
        seen, policy, truth = (list(map(behaviour, paths, held.targets.tolist())) for paths in (drawn, second, true))
        return {
            "behaviour_delta": behaviour_delta(seen, truth),
            "behaviour_delta_policy": behaviour_delta(policy, truth),
        } | self.average(
            sequence_score=list(map(sequence_score, greedy, true)),
            sequence_score_drawn=list(map(sequence_score, drawn, true)),
            sequence_score_policy=list(map(sequence_score, second, true)),
            found=[row[0] for row in seen],
            found_policy=[row[0] for row in truth],
            length=[row[1] for row in seen],
            length_policy=[row[1] for row in truth],
        )

    @torch.no_grad()
    def _walked(self, net: ObjectAttention, held: Trials, draw: np.random.Generator | None) -> list[DecodedScanpath]:
        count, noise = len(held.targets), np.random.default_rng(3)
        features = net.cnn_embedding(_pictures(noisy(self._products, noise)))[torch.from_numpy(held.items)]
        cells, target = grid_cells(_GRID).expand(count, -1, -1), torch.from_numpy(held.targets)

        def step(fixations: np.ndarray) -> np.ndarray:
            logits = net.logits_from_features(features, cells, target, torch.from_numpy(fixations)[:, None])
            return np.asarray(logits[:, 0, -1])

        return decode_scanpaths(step, count, LONGEST, draw=draw)

    def _trials(self, split: int, count: int) -> Trials:
        """Trials that are never trained on: their generator has another seed than any step."""
        return trials(np.random.default_rng((split, 2**40)), count, _GRID)

    def facts(self) -> dict[str, str]:
        return {
            "data": f"synthetic shelves of recipes.oat.data, {self.schedule.batch} new trials a step",
            "departures": "half of the batches on other grids; averaged weights (EMA); gradients clamped, not scaled",
        }


def _batch(held: Trials, pictures: np.ndarray, items: np.ndarray) -> Batch:
    """Trials as a batch, with the products that occur in them and the index of the product at each place."""
    arrays = {"items": items, "target": held.targets, "path": held.paths}
    cells = grid_cells(held.grid).expand(len(items), -1, -1)
    return {"pictures": _pictures(pictures), "cells": cells, **{k: torch.from_numpy(v) for k, v in arrays.items()}}


def _pictures(arrays: np.ndarray) -> Tensor:
    """Pictures (m, h, w, 3) as (m, 3, h, w)."""
    return torch.from_numpy(np.ascontiguousarray(arrays.transpose(0, 3, 1, 2)))
