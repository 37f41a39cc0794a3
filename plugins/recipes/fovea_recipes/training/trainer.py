"""The one fit loop: seeded, resumable, with averaged weights, a cosine schedule and early stopping.

Knows optimisation; knows no model, no data and no loss (a Recipe brings those). Step `t` depends on
the seed and on `t` alone, so a resumed fit ends where an uninterrupted one does.
"""

import copy
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from fovea.errors import Conflict, InvalidOption
from fovea_recipes.training.checkpoint import flatten_optimizer, read_checkpoint, restore_optimizer, write_checkpoint
from fovea_recipes.training.recipe import Recipe
from shared.registry import CallContext
from shared.telemetry import log


@dataclass(slots=True)
class FitProgress:
    """Where a fit stands; written into every checkpoint.

    Attributes:
        step: Batches done.
        loss: Running mean of the loss.
        best: Best validation score so far, and `best_step` where it was reached.
        stale: Validations since then.
        seconds: Time spent stepping, over all resumptions.
        scores: (step, score) of every validation.
    """

    step: int = 0
    loss: float = float("nan")
    best: float = float("-inf")
    best_step: int = 0
    stale: int = 0
    seconds: float = 0.0
    scores: list[tuple[int, float]] = field(default_factory=list)


OnStep = Callable[[Recipe, FitProgress], None]
"""Hears of every step."""


@dataclass(frozen=True, slots=True)
class FitResult:
    """A finished fit: the network with the best weights, in eval mode, and how it came about."""

    network: nn.Module
    data: str
    progress: FitProgress


def fit(
    recipe: Recipe, folder: Path, *, device: str = "cpu", run: CallContext | None = None, on_step: OnStep | None = None
) -> FitResult:
    """Train `recipe` in `folder`, going on from the checkpoint that is there.

    Args:
        recipe: The recipe to train.
        folder: Holds `last.safetensors`, `best.safetensors` and the recipe's derived data.
        device: `cpu`, `cuda` or `cuda:N`.
        run: Checked between steps and told the fraction done, for jobs.
        on_step: Called with the recipe and its progress after every step, those of `Recipe.pretrain` included.

    Raises:
        Conflict: The checkpoint in `folder` belongs to another recipe or to other knobs.
        Cancelled: `run` was cancelled; the last checkpoint stays.
        InvalidOption: The loss is no longer finite.
    """
    run = run or CallContext()
    loop = _Loop(recipe, folder, recipe.prepare(folder / "data"), device)
    loop.resume()
    recipe.pretrain(folder / "data", device, on_step)
    while not loop.finished:
        run.check()
        loop.step()
        run.progress(loop.progress.step / recipe.schedule.steps)
        if on_step is not None:
            on_step(recipe, loop.progress)
        if loop.progress.step % recipe.schedule.validate_every == 0 or loop.progress.step == recipe.schedule.steps:
            loop.validate()
    return loop.result()


class _Loop:
    """The state of one fit: live weights, averaged weights, optimiser, progress."""

    def __init__(self, recipe: Recipe, folder: Path, data: str, device: str = "cpu") -> None:
        self.recipe, self.folder, self.data, self.device = recipe, folder, data, device
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(recipe.seed)
            self.live = _channels_last(recipe.network().train().to(device))
        self.average = copy.deepcopy(self.live).eval()
        self.optimizer = recipe.optimizer(self.live)
        self.progress = FitProgress()

    @property
    def finished(self) -> bool:
        """Whether all steps are done, or patience has run out."""
        schedule = self.recipe.schedule
        return self.progress.step >= schedule.steps or 0 < schedule.patience <= self.progress.stale

    def step(self) -> None:
        """Draw once and step the optimiser for every batch of the draw."""
        started = time.monotonic()
        step, schedule = self.progress.step, self.recipe.schedule
        for group in self.optimizer.param_groups:
            group["lr"] = schedule.rate_at(step) * group.get("share", 1.0)
        for batch in self.recipe.batches(step, np.random.default_rng((self.recipe.seed, step))):
            loss = self.recipe.loss(self.live, {name: tensor.to(self.device) for name, tensor in batch.items()})
            self._watch(loss.item())
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            if schedule.clamp is not None:
                nn.utils.clip_grad_value_(self.live.parameters(), schedule.clamp)
            if schedule.clip is not None:
                nn.utils.clip_grad_norm_(self.live.parameters(), schedule.clip)
            self.optimizer.step()
        self._follow(min(schedule.ema, (1 + step) / (10 + step)))
        self.progress.step += 1
        self.progress.seconds += time.monotonic() - started

    def _watch(self, loss: float) -> None:
        """Keep a running mean of the loss; refuse one that is not finite: it would only spoil the checkpoint."""
        if not math.isfinite(loss):
            detail = f"The loss is {loss} at step {self.progress.step}."
            raise InvalidOption(detail, hint="Lower schedule.rate, or clamp gradients.", field="schedule.rate")
        known = self.progress.loss
        self.progress.loss = loss if math.isnan(known) else 0.98 * known + 0.02 * loss

    @torch.no_grad()
    def _follow(self, decay: float) -> None:
        """Let the averaged weights (and batch-norm statistics) follow the live ones; early on they follow closely."""
        live = self.live.state_dict()
        for name, tensor in self.average.state_dict().items():
            if tensor.is_floating_point():
                tensor.lerp_(live[name], 1 - decay)
            else:
                tensor.copy_(live[name])

    def validate(self) -> None:
        """Score the averaged weights, keep them if they are the best, and write a checkpoint."""
        score = self.recipe.score(self.average.cpu())  # where `measure` has it, too: recipes hold their data there
        self.average.to(self.device)
        progress = self.progress
        progress.scores.append((progress.step, score))
        better = progress.best_step == 0 or score > progress.best
        progress.stale = 0 if better else progress.stale + 1
        if better:
            progress.best, progress.best_step = score, progress.step
            write_checkpoint(self.folder / "best.safetensors", self.average.state_dict(), self._state())
        write_checkpoint(self.folder / "last.safetensors", self._tensors(), self._state())
        log(__name__).info("validated", recipe=self.recipe.name, step=progress.step, loss=progress.loss, score=score)

    def _tensors(self) -> dict[str, Tensor]:
        parts = {
            "live": self.live.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": flatten_optimizer(self.optimizer),
        }
        return {f"{part}/{name}": tensor for part, named in parts.items() for name, tensor in named.items()}

    def _state(self) -> dict[str, object]:
        knobs = self.recipe.model_dump(mode="json")
        return {"recipe": self.recipe.name, "knobs": knobs, "data": self.data, "progress": asdict(self.progress)}

    def resume(self) -> None:
        """Go on from the last checkpoint, where there is one."""
        path = self.folder / "last.safetensors"
        if not path.exists():
            return
        tensors, state = read_checkpoint(path)
        mine = self._state()
        if any(state[key] != mine[key] for key in ("recipe", "knobs", "data")):
            detail = f"The checkpoint in {self.folder} was made with another recipe, other knobs or other data."
            raise Conflict(detail, hint="Delete it to train anew, or give another --folder.")
        parts: dict[str, dict[str, Tensor]] = {"live": {}, "average": {}, "optimizer": {}}
        for name, tensor in tensors.items():
            part, _, rest = name.partition("/")
            parts[part][rest] = tensor
        self.live.load_state_dict(parts["live"])
        self.average.load_state_dict(parts["average"])
        restore_optimizer(self.optimizer, parts["optimizer"])
        scores = [(int(step), float(score)) for step, score in state["progress"]["scores"]]  # JSON knows no tuples
        self.progress = FitProgress(**{**state["progress"], "scores": scores})

    def result(self) -> FitResult:
        """The network with its best weights, on the CPU."""
        tensors, _ = read_checkpoint(self.folder / "best.safetensors")
        self.average.load_state_dict(tensors)
        return FitResult(self.average.cpu(), self.data, self.progress)


def _channels_last(network: nn.Module) -> nn.Module:
    """The network with its picture kernels laid out channels last.

    It takes a quarter off a step on a CPU and changes no result beyond rounding. `Module.to` would refuse networks that
    have a 3-D convolution too.
    """
    for parameter in network.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    return network
