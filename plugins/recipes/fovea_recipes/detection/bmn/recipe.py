"""Recipes of the demo weights of BMN, without and with class-semantics attention, on synthetic videos.

Knows how the committed weights are made and measured; its numbers say nothing about real videos.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, PrivateAttr
from torch import Tensor, nn

from fovea_actions.segments.proposals import boundary_labels, classify_proposals, score_proposals, soft_nms
from fovea_recipes.detection.bmn.data import CLASSES, FEATURES, LENGTH, Split, Videos, videos
from fovea_recipes.detection.bmn.loss import boundary_matching_loss
from fovea_recipes.detection.metrics.temporal import (
    resampled_precision,
    resampled_recall,
    temporal_average_precision,
)
from fovea_recipes.training.intervals import bootstraps
from fovea_recipes.training.recipe import Batch, Recipe, Schedule

Row = tuple[Any, ...]
"""A segment, its video first."""

THRESHOLDS = tuple(np.linspace(0.5, 0.95, 10).tolist())


class BmnDemo(Recipe, name="bmn-demo", weights="bmn"):
    """BMN, 0.3 million parameters, on synthetic videos of 32 cells: about 5 minutes on one CPU core."""

    schedule: Schedule = Schedule(steps=1000, batch=16, rate=1e-3, floor=2e-5, decay=1e-4, ema=0.995)
    hidden: tuple[int, int, int] = (64, 32, 128)
    train: int = Field(2000, ge=1, description="Videos to train on.")
    valid: int = Field(100, ge=1, description="Videos that choose the checkpoint.")
    test: int = Field(400, ge=1, description="Videos that are only measured, once.")
    world: int = Field(0, ge=0, description="Which classes and videos; `seed` draws weights and the order.")

    _data: dict[str, Videos] = PrivateAttr(default_factory=dict)
    _labels: tuple[np.ndarray, ...] = PrivateAttr(())

    def config(self) -> dict[str, Any]:
        return {"features": FEATURES, "length": LENGTH, "hidden": self.hidden}

    def prepare(self, cache: Path) -> str:
        held = self.videos("train")
        labelled = (boundary_labels(segments, held.features.shape[2]) for segments in held.segments)
        self._labels = tuple(np.stack(part).astype(np.float32) for part in zip(*labelled, strict=True))
        return f"train:{held.digest} valid:{self.videos('valid').digest}"

    def videos(self, split: Split) -> Videos:
        """The videos of one split, drawn once."""
        if split not in self._data:
            self._data[split] = videos(split, getattr(self, split), self.world)
        return self._data[split]

    def batches(self, step: int, rng: np.random.Generator) -> Iterator[Batch]:
        held = self.videos("train")
        chosen = rng.integers(len(held.features), size=self.schedule.batch)
        overlap, start, end = (torch.from_numpy(part[chosen]) for part in self._labels)
        yield {
            "x": torch.from_numpy(held.features[chosen]),
            "r": torch.from_numpy(held.semantics[chosen]),
            "overlap": overlap,
            "start": start,
            "end": end,
            "chance": torch.from_numpy(rng.random(overlap.shape, np.float32)),
        }

    def loss(self, network: nn.Module, batch: Batch) -> Tensor:
        maps = self.answer(network, batch["x"], batch["r"])
        return boundary_matching_loss(maps, batch["overlap"], batch["start"], batch["end"], batch["chance"])

    def answer(self, network: nn.Module, x: Tensor, r: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Output of the network; plain BMN does not see the semantics."""
        maps: tuple[Tensor, Tensor, Tensor] = network(x)
        return maps

    def score(self, network: nn.Module) -> float:
        truth, found, _ = self.proposals(network, "valid")
        return float(temporal_average_precision(truth, found, THRESHOLDS).mean())

    def measure(self, network: nn.Module) -> dict[str, float]:
        truth, found, bare = self.proposals(network, "test")
        precision = resampled_precision(truth, found, THRESHOLDS)
        recalls = {count: resampled_recall(truth, bare, count, THRESHOLDS) for count in (10, 100)}

        def scores(videos: NDArray[np.int64]) -> dict[str, float]:
            of_level = precision(videos).mean(0)
            parts = {"average_map": float(of_level.mean()), "map_50": float(of_level[0]), "map_75": float(of_level[5])}
            return parts | {f"ar_{count}": recall(videos) for count, recall in recalls.items()}

        count = len(self.videos("test").features)
        self._intervals = bootstraps(count, scores)
        return scores(np.arange(count))

    def proposals(self, network: nn.Module, split: Split) -> tuple[list[Row], list[Row], list[Row]]:
        """Rows of a split: truth (video, start, end, label), what was found with label and score, and without label.

        A proposal's class is the mean of the recogniser's probabilities inside it.
        """
        held, found, bare = self.videos(split), list[Row](), list[Row]()
        for video, (confidence, start, end) in enumerate(self._maps(network, held)):
            starts, ends, scores = soft_nms(*score_proposals(confidence, start, end))
            bare += [(video, a, b, s) for a, b, s in zip(starts, ends, scores, strict=True)]
            rows = classify_proposals(starts, ends, scores, held.scores[video], best=2)
            found += [(video, *row) for row in zip(*rows, strict=True)]
        truth: list[Row] = [
            (video, *span, label)
            for video, spans in enumerate(held.segments)
            for span, label in zip(spans, held.labels[video], strict=True)
        ]
        return truth, found, bare

    @torch.no_grad()
    def _maps(self, network: nn.Module, held: Videos) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        for first in range(0, len(held.features), 50):
            x, r = (torch.from_numpy(part[first : first + 50]) for part in (held.features, held.semantics))
            yield from zip(*(part.numpy() for part in self.answer(network, x, r)), strict=True)

    def facts(self) -> dict[str, str]:
        return {
            "data": f"synthetic videos of fovea_recipes.detection.bmn.data, {LENGTH} cells, {CLASSES} classes",
            "test_digest": self.videos("test").digest,
            "departures": "cosine schedule and averaged weights (EMA)",
        }


class BmnCsaDemo(BmnDemo, name="bmn-csa-demo", weights="bmn-csa", dtype="int8"):
    """BMN with class-semantics attention, on the same videos."""

    channel: bool = Field(True, description="False leaves the attention over channels out: an ablation.")
    time: bool = Field(True, description="False leaves the attention over time out: an ablation.")

    def config(self) -> dict[str, Any]:
        return {**super().config(), "semantics": CLASSES, "channel": self.channel, "time": self.time}

    def answer(self, network: nn.Module, x: Tensor, r: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        maps: tuple[Tensor, Tensor, Tensor] = network(x, r)
        return maps
