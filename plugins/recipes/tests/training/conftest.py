"""A recipe small enough to train in a blink: a line through points."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fovea_recipes.training.recipe import Batch, Recipe, Schedule


class Line(nn.Module):
    """Slope and offset, behind a batch norm so that there are running statistics."""

    def __init__(self, width: int = 1) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(1)
        self.layer = nn.Linear(1, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(self.norm(x))


class LineRecipe(Recipe):
    """Fits y = 3x - 1."""

    name: ClassVar[str] = "line"
    weights: ClassVar[str] = "line"

    schedule: Schedule = Schedule(steps=60, batch=16, rate=0.1, floor=0.01, clamp=0.5, ema=0.5, validate_every=20)
    width: int = 1
    shift: float = -1.0
    poison: int | None = None

    def config(self) -> dict[str, Any]:
        return {"width": self.width}

    def network(self) -> nn.Module:
        return Line(**self.config())

    def prepare(self, cache: Path) -> str:
        cache.mkdir(parents=True, exist_ok=True)
        return f"line shifted by {self.shift}"

    def batches(self, step: int, rng: np.random.Generator) -> Iterator[Batch]:
        x = torch.from_numpy(rng.normal(size=(self.schedule.batch, 1)).astype(np.float32))
        y = 3 * x + self.shift
        yield {"x": x, "y": y * float("nan") if step == self.poison else y}

    def loss(self, network: nn.Module, batch: Batch) -> Tensor:
        return (network(batch["x"]) - batch["y"]).square().mean()

    @torch.no_grad()
    def score(self, network: nn.Module) -> float:
        x = torch.linspace(-2, 2, 9)[:, None]
        return -float((network(x) - 3 * x - self.shift).abs().mean())

    def measure(self, network: nn.Module) -> dict[str, float]:
        return {"error": -self.score(network)}

    def facts(self) -> dict[str, str]:
        return {"description": "points on a line"}


@pytest.fixture
def line():
    return LineRecipe
