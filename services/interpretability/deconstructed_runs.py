"""One run of the deconstruction study: a small byte model with a mixer in some of its layers, trained and measured.

Knows training; the networks it knows by name. What runs say together is the study's.
"""

from __future__ import annotations

import shutil
import time
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal, cast

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from services.interpretability.experiments.indicators import indicators
from shared.registry import CallContext
from shared.training.byte_recipe import BYTES, ByteRecipe, bits_of, bits_per_byte
from shared.training.recipe import Schedule
from shared.training.text_corpus import Corpus, Split, corpus, corpus_of
from shared.training.trainer import FitProgress, fit

__all__ = ["LAYOUTS", "VARIANTS", "Layout", "MixerRun", "ModelSize", "Variant", "train_and_measure"]

Variant = Literal["standard", "mlp", "approximate", "nonapproximate", "random_qk", "fixed_qk", "static_qk"]
Layout = Literal["uniform", "hybrid"]

VARIANTS: tuple[Variant, ...] = (
    "standard",
    "mlp",
    "approximate",
    "nonapproximate",
    "random_qk",
    "fixed_qk",
    "static_qk",
)
LAYOUTS: tuple[Layout, ...] = ("uniform", "hybrid")

_CURVE_POINTS = 8
"""Points of a curve."""

_INDICATOR_BYTES = 128
"""Bytes of held-out text whose maps the indicators are taken of."""

INDICATOR_NAMES = ("entropy", "concentration", "sink", "local_0", "local_1", "local_2", "local_3")


class ModelSize(BaseModel):
    """How large the models are, and what a step reads."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    width: int = Field(96, ge=8, le=1024, description="D.")
    layers: int = Field(4, ge=2, le=24, description="Layers; hybrids have the variant in the first, third, fifth …")
    heads: int = Field(4, ge=1, le=32, description="Heads; D / heads must be even.")
    context: int = Field(256, ge=16, le=2048, description="Bytes of a window.")
    batch: int = Field(16, ge=1, le=256, description="Windows of a step.")


class MixerRun(ByteRecipe):
    """A byte model of one variant, layout and seed."""

    name: ClassVar[str] = "deconstruction"
    weights: ClassVar[str] = "deconstructed"
    builds: ClassVar[str | None] = "deconstructed-lm"

    size: ModelSize
    mixer: Variant
    layout: Layout
    text: str | None = None

    @classmethod
    def of(cls, mixer: Variant, layout: Layout, seed: int, steps: int, size: ModelSize, text: str | None) -> MixerRun:
        """The run of a cell."""
        schedule = Schedule(
            steps=steps,
            batch=size.batch,
            rate=2e-3,
            floor=2e-5,
            warm_up=min(100, steps // 10),
            decay=0.01,
            ema=0.98,
            clip=1.0,
            betas=(0.9, 0.95),
            validate_every=max(1, -(-steps // _CURVE_POINTS)),
        )
        return cls(seed=seed, schedule=schedule, context=size.context, size=size, mixer=mixer, layout=layout, text=text)

    def config(self) -> dict[str, Any]:
        """A deconstructed LM over bytes."""
        sizes = {"width": self.size.width, "layers": self.size.layers, "heads": self.size.heads}
        return {"vocab": BYTES, **sizes, "context": self.context, "mixer": self.mixer, "layout": self.layout}

    def split(self, name: Split) -> Corpus:
        """A part of the library's text, or of the text that was sent."""
        return self._parts[name]

    def measure(self, network: nn.Module) -> dict[str, float]:
        """Bits per byte; for a hybrid also without the variant's layers."""
        windows = self.test_windows()
        found = {"bits": bits_per_byte(network, windows)}
        if self.layout == "hybrid":
            with torch.no_grad():
                skipped = [cast("Tensor", network(part[:, :-1], skip=True)) for part in torch.split(windows, 8)]
            found["bits_skip"] = bits_of(torch.cat(skipped), windows[:, 1:])
        return found

    @cached_property
    def _parts(self) -> dict[Split, Corpus]:
        names: tuple[Split, ...] = ("train", "valid", "test")
        return {name: corpus(name) if self.text is None else corpus_of(self.text.encode(), name) for name in names}


def train_and_measure(run: MixerRun, folder: Path, watched: CallContext) -> dict[str, Any]:
    """Train and measure; what a cell keeps, as JSON.

    Args:
        run: What is trained.
        folder: Where checkpoints go; a run that was stopped goes on from there, and a finished one leaves nothing.
        watched: Stops it, and is told how far it is.
    """
    seen = FitProgress()

    def watch(progress: FitProgress) -> None:
        nonlocal seen
        seen = progress
        watched.progress(progress.step / run.schedule.steps, f"{run.mixer}, {run.layout}, seed {run.seed}")

    fitted = fit(run, folder, run=watched, on_step=watch)
    net, progress = fitted.network, fitted.progress
    windows = run.test_windows()
    session: Any = cast("Any", net).session(1)
    begun = time.perf_counter()
    session.feed(windows[:1, :-1])
    read = time.perf_counter() - begun
    trained = progress.step * run.schedule.batch * run.context
    found = {
        **run.measure(net),
        "parameters": sum(p.numel() for p in net.parameters()),
        "state_bytes": session.nbytes,
        "curve": [[step, -score] for step, score in progress.scores],
        "indicators": _indicators(net, windows[:1, : min(_INDICATOR_BYTES, run.context)]),
        "speed": {"train": trained / max(progress.seconds, 1e-9), "read": run.context / max(read, 1e-9)},
    }
    shutil.rmtree(folder, ignore_errors=True)
    return found


def _indicators(net: nn.Module, ids: Tensor) -> list[dict[str, float] | None]:
    """Per layer the mean over heads of each indicator, and the diversity; None where no tokens are mixed."""
    found: list[dict[str, float] | None] = []
    for drawn in cast("Any", net).maps(ids):
        if drawn is None:
            found.append(None)
            continue
        told = indicators(drawn[0])
        heads = told.by_name()
        found.append({**{kind: float(heads[kind].mean()) for kind in INDICATOR_NAMES}, "diversity": told.diversity})
    return found
