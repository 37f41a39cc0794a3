"""The Recipe contract: data, network, loss and metric in, weights with a manifest out. And how recipes are found.

Knows what a fit loop needs to ask; knows no model and no data of its own. A recipe is a frozen pydantic model: its
fields are its knobs, so the command line, the manifest and a test set them the same way.
"""

from __future__ import annotations

import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike, NDArray
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, field_serializer
from torch import Tensor, nn

from fovea.errors import Fault, NotFound
from fovea.plugins import entries
from fovea_recipes.training.calibrate import ServingFacts
from fovea_recipes.training.intervals import mean_interval
from shared.export.parity import Parity
from shared.registry.discovery import network, scan
from shared.registry.weights import Dtype

GROUP = "fovea.recipes"
"""Entry points of packages whose modules hold recipes."""

Batch = Mapping[str, Tensor]
"""Batch of one optimiser step, by name; the first axis of each tensor is the sample."""


class _Knobs(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Schedule(_Knobs):
    """How long and how boldly to step. Rates follow half a cosine from `rate` to `floor` over all `steps`."""

    steps: int = Field(ge=1, description="Batches drawn.")
    batch: int = Field(ge=1, description="Samples per batch.")
    rate: float = Field(gt=0, description="Learning rate at the first step, after `warm_up`.")
    floor: float = Field(0.0, ge=0, description="Learning rate at the last step; equal to `rate` for a constant one.")
    warm_up: int = Field(0, ge=0, description="Steps over which the rate rises from zero; a quarter at most.")
    decay: float = Field(0.0, ge=0, description="Weight decay of AdamW; 0 makes it Adam.")
    clamp: float | None = Field(None, gt=0, description="Each element of each gradient is clamped to this.")
    clip: float | None = Field(None, gt=0, description="The norm of all gradients together is clipped to this.")
    betas: tuple[float, float] = Field((0.9, 0.999), description="Decay of AdamW's two running means.")
    ema: float = Field(0.0, ge=0, lt=1, description="Decay of the averaged weights that are kept; 0 keeps the last.")
    validate_every: int = Field(250, ge=1, description="Steps between two looks at validation data and checkpoints.")
    patience: int = Field(0, ge=0, description="Validations without progress before stopping; 0 never stops early.")

    def rate_at(self, step: int) -> float:
        """Learning rate of a step, 0-based."""
        warm_up = min(self.warm_up, self.steps // 4)  # a short training must not end before its rate has risen
        rise = min(1.0, (step + 1) / warm_up) if warm_up else 1.0
        turn = math.pi * min(step / self.steps, 1.0)
        return rise * (self.floor + (self.rate - self.floor) * (1 + math.cos(turn)) / 2)


language_schedule = partial(Schedule, clip=1.0, betas=(0.9, 0.95))
"""A schedule of models of sequences."""


class MultiScale(_Knobs):
    """Train at several sizes: `draw` takes one of them per batch, `each` steps once at every one of them in turn."""

    side: int = Field(ge=1, description="Side of the square at rate 1, pixels.")
    rates: tuple[float, ...] = (0.75, 1.0, 1.25)
    mode: Literal["draw", "each"] = "draw"
    multiple: int = Field(32, ge=1, description="Sides are rounded to multiples of this.")

    def sides(self, rng: np.random.Generator) -> Sequence[int]:
        """The sides to step at for one batch."""
        sides = [round(self.side * rate / self.multiple) * self.multiple for rate in self.rates]
        return sides if self.mode == "each" else [sides[rng.integers(len(sides))]]

    @staticmethod
    def resize(x: Tensor, side: int) -> Tensor:
        """(n, c, h, w) as (n, c, side, side): bilinear with aligned corners, as training code does it."""
        if x.shape[-2:] == (side, side):
            return x
        return F.interpolate(x, size=(side, side), mode="bilinear", align_corners=True)


class Recipe(_Knobs, ABC):
    """Data + loss + metric + steps → weights + export, with a manifest.

    Class attributes:
        name: Its name in `fovea train`.
        weights: Name of the weights that it makes: `<weights>.safetensors` next to `<weights>.json`.
        builds: Name under which `network()` knows what is trained, where it is not that of the weights.
        serves: Name of the model that serves such weights under any name; None: only under that of the weights.
        dtype: How their file holds numbers.
    """

    name: ClassVar[str]
    weights: ClassVar[str]
    builds: ClassVar[str | None] = None
    serves: ClassVar[str | None] = None
    dtype: ClassVar[Dtype] = "float16"

    seed: int = 1
    schedule: Schedule

    _intervals: dict[str, tuple[float, float]] = PrivateAttr(default_factory=dict)

    def __init_subclass__(cls, *, dtype: Dtype | None = None, **given: Any) -> None:
        """Take the class attributes that the class statement gives: `class Mine(Recipe, name="mine", weights="my")`."""
        names = ("name", "weights", "builds", "serves")
        facts = {name: given.pop(name) for name in names if name in given} | ({"dtype": dtype} if dtype else {})
        super().__init_subclass__(**given)
        for name, value in facts.items():
            setattr(cls, name, value)

    @field_serializer("data", "folder", "held_out", check_fields=False)
    def _name_files(self, given: Any) -> Any:
        """Files and folders without their places: what is written down is read elsewhere."""
        return given.name if isinstance(given, Path) else given

    @abstractmethod
    def config(self) -> dict[str, Any]:
        """Keywords of the `network()` call; they go into the manifest, so that a service builds the same network."""

    def strip_training_parts(self, network: nn.Module) -> tuple[nn.Module, dict[str, Any]]:
        """The part of the trained network to publish, and its `config()`: parts that only training needs may go."""
        return network, self.config()

    def network(self) -> nn.Module:
        """A new network; its random weights follow torch's global seed, which the fit loop sets."""
        built: nn.Module = network(self.builds or self.weights, **self.config())
        return built

    @abstractmethod
    def prepare(self, cache: Path) -> str:
        """Get the data ready, with derived files under `cache`; return a digest that names exactly this data."""

    def pretrain(self, cache: Path, device: str, on_step: Callable[[Recipe, Any], None] | None) -> None:  # few need it
        """Train what this training needs, such as a teacher, on a device under `cache`; called after `prepare`."""

    @abstractmethod
    def batches(self, step: int, rng: np.random.Generator) -> Iterator[Batch]:
        """The draw of a step (0-based) from the training data; each batch that it yields is one optimiser step."""

    @abstractmethod
    def loss(self, network: nn.Module, batch: Batch) -> Tensor:
        """The scalar to minimise."""

    @abstractmethod
    def score(self, network: nn.Module) -> float:
        """A quick score on validation data, higher is better: chooses weights and stops early."""

    @abstractmethod
    def measure(self, network: nn.Module) -> dict[str, float]:
        """All metrics on held-out data that nothing else has seen."""

    def average(self, **values: ArrayLike) -> dict[str, float]:
        """Means of metrics of which there is one value a held-out sample; `intervals` has how sure they are."""
        self._intervals |= {name: mean_interval(each) for name, each in values.items()}
        return {name: float(np.asarray(each, np.float64).mean()) for name, each in values.items()}

    def intervals(self) -> dict[str, tuple[float, float]]:
        """Ends of the 95 % intervals of what `measure` last gave, where they are known."""
        return self._intervals

    def calibrate(self, network: nn.Module) -> ServingFacts:
        """Constants for serving the weights, chosen on pictures that were not trained on."""
        return ServingFacts()

    def facts(self) -> dict[str, str]:
        """Facts for a reader of the manifest beyond the knobs: the data, departures from the paper."""
        return {}

    def export(self, network: nn.Module, path: Path) -> Parity | None:
        """Write the trained network as ONNX and say how far it is from torch; None when it has no such form."""
        return None

    def optimizer(self, network: nn.Module) -> torch.optim.Optimizer:
        """AdamW with the schedule's decay (which without decay is Adam)."""
        knobs = self.schedule
        return torch.optim.AdamW(network.parameters(), lr=knobs.rate, betas=knobs.betas, weight_decay=knobs.decay)


def to_tensor(images: NDArray[np.uint8]) -> Tensor:
    """Pictures (n, h, w, 3) uint8 as network input (n, 3, h, w) in 0..1."""
    return torch.from_numpy(np.array(images)).permute(0, 3, 1, 2).float().div(255)


@torch.no_grad()
def predict_in_batches(
    network: nn.Module,
    images: NDArray[np.uint8],
    to_input: Callable[[NDArray[np.uint8]], Tensor],
    batch: int,
    call: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """The answers (n, …) of a network, in eval mode and on its device, to pictures (n, h, w, 3); on the CPU.

    `call` asks something else than the network itself.
    """
    device = next(network.eval().parameters()).device
    parts = (to_input(images[at : at + batch]).to(device) for at in range(0, len(images), batch))
    return torch.cat([(call or network)(part).cpu() for part in parts])


def decay_kernels(network: nn.Module, schedule: Schedule, backbone_share: float = 1.0) -> torch.optim.Optimizer:
    """AdamW whose weight decay leaves out norms and biases.

    The rate of layers below `backbone`, which has been trained before, is a share of the others' rate.
    """
    held: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            is_old = backbone_share != 1 and name.startswith("backbone.")
            held.setdefault((is_old, parameter.ndim > 1), []).append(parameter)
    groups = [
        {"params": some, "weight_decay": schedule.decay * is_kernel, "share": backbone_share if is_old else 1.0}
        for (is_old, is_kernel), some in sorted(held.items(), reverse=True)
    ]
    return torch.optim.AdamW(groups, lr=schedule.rate, betas=schedule.betas)


def join_names(names: Iterable[str]) -> str:
    """Names of classes as a manifest lists them, with commas between: those within a name become spaces."""
    return ",".join(" ".join(name.replace(",", " ").split()) for name in names)


def recipes() -> dict[str, type[Recipe]]:
    """Return all recipes by name, from the modules of every package in the entry-point group `fovea.recipes`."""
    found = {
        thing.name: thing
        for point in entries(GROUP)
        for module in scan(point.value)
        for thing in vars(module).values()
        if inspect.isclass(thing) and issubclass(thing, Recipe) and "name" in vars(thing)
    }
    return dict(sorted(found.items()))


def recipe_named(name: str) -> type[Recipe]:
    """The recipe of that name; NotFound, which lists those there are, if there is none; Fault: it is unfinished."""
    known = recipes()
    if name not in known:
        detail = f"{name!r} is not a recipe. Available: {', '.join(known) or 'none'}."
        raise NotFound(detail, hint="`fovea train` lists the recipes.")
    if missing := sorted(getattr(known[name], "__abstractmethods__", ())):
        detail = f"The recipe {name!r} has no {' and no '.join(missing)}."
        raise Fault(detail, hint=f"Write {'it' if len(missing) == 1 else 'them'} in {known[name].__module__}.")
    return known[name]
