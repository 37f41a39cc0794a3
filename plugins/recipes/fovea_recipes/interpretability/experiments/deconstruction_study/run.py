"""Deconstruction study: small language models trained without an ingredient of attention, compared with the paper's.

"Deconstructing Attention" (2025). One run trains one variant in one layout with one seed and is cached under its key:
studies share runs, and a stopped study resumes, also inside a run. The experiment `deconstruction` asks what a trained
model can do without; this one asks what a model can be trained without.
"""

import time
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import torch

from fovea.errors import InvalidOption
from fovea_recipes.interpretability.experiments.deconstruction_study.mixer_training import MixerRun, train_and_measure
from fovea_recipes.interpretability.experiments.deconstruction_study.report import build_report
from fovea_recipes.interpretability.experiments.deconstruction_study.spec import (
    LAYOUTS,
    DeconstructionStudySpec,
    MixerCell,
)
from services.interpretability.core.experiment import EXAMPLE_LM, Cost, Experiment, Progress, probe_card
from services.interpretability.core.report import Report, Scalar, json_digest
from services.interpretability.core.studied_model import StudiedModel
from shared.registry import Card, Paper

_RECIPE = (
    "The paper's recipe, for a GPU: 15 B of SlimPajama at length 2,048, 500 k tokens a step, Adam (0.9, 0.9999), "
    "4e-4 with 2,000 steps of warm-up and a cosine; 500 M parameters are width 896, 24 layers, 14 heads."
)


class DeconstructionStudy(Experiment[DeconstructionStudySpec]):
    """Trains small models without an ingredient of attention, and compares them."""

    In = DeconstructionStudySpec
    route: ClassVar[str] = "deconstruction/study"
    card: ClassVar[Card] = probe_card(
        "deconstruction-study",
        "Trains small models with simpler mixers, in all layers or in every other one, and compares them.",
        Paper.on_arxiv(
            "Deconstructing Attention: Investigating Design Principles for Effective Language Modeling",
            2025,
            "2510.11602",
        ),
        "Bytes are the tokens. The models are a thousandth of the paper's: compare orders, not numbers.",
        _RECIPE,
        variants=["standard", "nonapproximate", "mlp"],
        layouts=["hybrid"],
        seeds=[1],
        steps=3,
        size={"width": 16, "layers": 2, "heads": 2, "context": 32, "batch": 2},
    )

    def load_model(self, name: str | None) -> StudiedModel:
        """Return a stand-in for the models that are trained here: only the tokens of `lm` count, and those are bytes.

        Raises:
            NotFound: There is no model of that name.
        """
        model = self.models.get(EXAMPLE_LM if name is None else name)
        return replace(model, name="deconstructed-lm", weights_sha256=json_digest("trained here"))

    def cost(self, spec: DeconstructionStudySpec, subject: StudiedModel) -> Cost:
        _check_spec(spec)
        return Cost(forwards=0, tokens=0, cells=len(_list_cells(spec)))

    def estimate(self, spec: DeconstructionStudySpec, subject: StudiedModel) -> Report:
        report = super().estimate(spec, subject)
        runs = len(_list_cells(spec))
        run = _run_of(spec, MixerCell("standard", "uniform", 1))
        net = run.network()
        (batch,) = run.batches(0, np.random.default_rng(0))
        times = []
        for _ in range(2):  # the first one pays for lazy set-up
            started = time.perf_counter()
            run.loss(net, batch).backward()  # type: ignore[no-untyped-call]
            times.append(time.perf_counter() - started)
        seconds = Scalar(value=round(min(times) * runs * spec.steps, 1), unit="s", note="At the speed of a step here.")
        counts = {"runs": Scalar(value=runs), "steps": Scalar(value=runs * spec.steps, note="Of all runs together.")}
        return report.model_copy(update={"scalars": {**report.scalars, **counts, "seconds": seconds}})

    def run(self, spec: DeconstructionStudySpec, subject: StudiedModel, progress: Progress) -> Report:
        runs: dict[str, list[dict[str, Any]]] = {}

        def train(cell: MixerCell) -> dict[str, Any]:
            content = {**_cell_content(spec, cell), "torch": torch.__version__}
            return train_and_measure(_run_of(spec, cell), self.store.work_folder(content), progress.cell_context())

        for cell, value in progress.each(_list_cells(spec), lambda cell: _cell_content(spec, cell), train):
            runs.setdefault(cell.name, []).append({**value, "variant": cell.variant, "layout": cell.layout})
        return build_report(spec, runs)


def _check_spec(spec: DeconstructionStudySpec) -> None:
    if spec.size.width % (2 * spec.size.heads):
        detail = f"size.width {spec.size.width} is not an even multiple of size.heads {spec.size.heads}."
        raise InvalidOption(detail, hint="Rotary positions turn pairs inside each head.", field="size")
    if (spec.data == "text") != (spec.text is not None):
        raise InvalidOption("data=text needs a text, and a text needs data=text.", field="text")
    least = 40 * (spec.size.context + 1)
    if spec.text is not None and (size := len(spec.text.encode())) < least:
        detail = f"text has {size:,} bytes; {least:,} are needed for windows of {spec.size.context} to learn and test."
        raise InvalidOption(detail, field="text")


def _list_cells(spec: DeconstructionStudySpec) -> list[MixerCell]:
    """All runs; standard attention comes first, once per seed: its layouts are the same model."""
    others = [variant for variant in dict.fromkeys(spec.variants) if variant != "standard"]
    seeds = list(dict.fromkeys(spec.seeds))
    layouts = [layout for layout in LAYOUTS if layout in spec.layouts]
    first = [MixerCell("standard", "uniform", seed) for seed in seeds]
    return first + [MixerCell(v, layout, seed) for layout in layouts for v in others for seed in seeds]


def _run_of(spec: DeconstructionStudySpec, cell: MixerCell) -> MixerRun:
    return MixerRun.of(cell.variant, cell.layout, cell.seed, spec.steps, spec.size, spec.text)


def _cell_content(spec: DeconstructionStudySpec, cell: MixerCell) -> dict[str, Any]:
    """Facts that a run depends on, besides code and versions."""
    run = _run_of(spec, cell)
    return {**cell._asdict(), "steps": spec.steps, "size": spec.size.model_dump(), "data": run.split("train").digest}
