"""Training and measurement of one run of the deconstruction study: a small byte model with one mixer and layout.

Knows training; knows networks by name only.
"""

from __future__ import annotations

import shutil
import time
from functools import cached_property
from pathlib import Path
from typing import Any, cast

from torch import Tensor, nn

from fovea_circuits.experiments.indicators import INDICATOR_NAMES, indicators
from fovea_memory.mixers.deconstructed.mixers import Variant
from fovea_recipes.interpretability.experiments.deconstruction_study.spec import Layout, ModelSize
from fovea_recipes.training.byte_recipe import BYTES, ByteRecipe, bits_per_byte
from fovea_recipes.training.recipe import Recipe, language_schedule
from fovea_recipes.training.text_corpus import Corpus, Split, corpus, corpus_of
from fovea_recipes.training.trainer import FitProgress, fit
from shared.registry import CallContext

_CURVE_POINTS = 8
"""Validations per run: the points of its curve."""

_INDICATOR_BYTES = 128
"""Bytes of held-out text whose maps the indicators are taken of."""


class MixerRun(ByteRecipe, name="deconstruction", weights="deconstructed", builds="deconstructed-lm"):
    """Training recipe of one byte model: one variant, layout and seed."""

    size: ModelSize
    mixer: Variant
    layout: Layout
    text: str | None = None

    @classmethod
    def of(cls, mixer: Variant, layout: Layout, seed: int, steps: int, size: ModelSize, text: str | None) -> MixerRun:
        """Build the recipe of a cell."""
        pace: dict[str, Any] = {"warm_up": min(100, steps // 10), "validate_every": max(1, -(-steps // _CURVE_POINTS))}
        schedule = language_schedule(steps=steps, batch=size.batch, rate=2e-3, floor=2e-5, decay=0.01, ema=0.98, **pace)
        return cls(seed=seed, schedule=schedule, context=size.context, size=size, mixer=mixer, layout=layout, text=text)

    def config(self) -> dict[str, Any]:
        sizes = {"width": self.size.width, "layers": self.size.layers, "heads": self.size.heads}
        return {"vocab": BYTES, **sizes, "context": self.context, "mixer": self.mixer, "layout": self.layout}

    def split(self, name: Split) -> Corpus:
        return self._parts[name]

    def measure(self, network: nn.Module) -> dict[str, float]:
        windows = self.test_windows()
        measured = {"bits": bits_per_byte(network, windows)}
        if self.layout == "hybrid":
            measured["bits_skip"] = bits_per_byte(network, windows, skip=True)
        return measured

    @cached_property
    def _parts(self) -> dict[Split, Corpus]:
        names: tuple[Split, ...] = ("train", "valid", "test")
        return {name: corpus(name) if self.text is None else corpus_of(self.text.encode(), name) for name in names}


def train_and_measure(run: MixerRun, folder: Path, context: CallContext) -> dict[str, Any]:
    """Train a model and measure it; return the value of its cell, as JSON.

    Checkpoints go to `folder`: a stopped run resumes from there, and a finished one leaves nothing.
    """

    def report_step(_recipe: Recipe, progress: FitProgress) -> None:
        context.progress(progress.step / run.schedule.steps, f"{run.mixer}, {run.layout}, seed {run.seed}")

    fitted = fit(run, folder, run=context, on_step=report_step)
    net, progress = fitted.network, fitted.progress
    windows = run.test_windows()
    session: Any = cast("Any", net).session(1)
    started = time.perf_counter()
    session.feed(windows[:1, :-1])
    read = time.perf_counter() - started
    trained = progress.step * run.schedule.batch * run.context
    value = {
        **run.measure(net),
        "parameters": sum(p.numel() for p in net.parameters()),
        "state_bytes": session.nbytes,
        "curve": [[step, -score] for step, score in progress.scores],
        "indicators": _indicators(net, windows[:1, : min(_INDICATOR_BYTES, run.context)]),
        "speed": {"train": trained / max(progress.seconds, 1e-9), "read": run.context / max(read, 1e-9)},
    }
    shutil.rmtree(folder, ignore_errors=True)
    return value


def _indicators(net: nn.Module, ids: Tensor) -> list[dict[str, float] | None]:
    """Per layer the mean over heads of each indicator, and the diversity; None where no tokens are mixed."""
    layers: list[dict[str, float] | None] = []
    for maps in cast("Any", net).maps(ids):
        if maps is None:
            layers.append(None)
            continue
        table = indicators(maps[0])
        heads = table.by_name()
        layers.append({**{name: float(heads[name].mean()) for name in INDICATOR_NAMES}, "diversity": table.diversity})
    return layers
