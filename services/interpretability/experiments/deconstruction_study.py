"""The deconstruction study: small models trained without an ingredient of attention, the paper's table beside ours.

"Deconstructing Attention" (2025). A run is a variant, a layout and a seed; it is kept under its key, so that studies
share runs and a study that was stopped goes on, also inside a run. `deconstruction` asks what a model that is there can
do without; this one asks what can be learnt without. Knows runs and reports; how one is trained, `deconstructed_runs`
knows.
"""

from __future__ import annotations

import time
from dataclasses import replace
from statistics import fmean, stdev
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import torch
from pydantic import Field

from services.interpretability.core.experiment import EXAMPLE_LM, NO_GRAPH, Cost, Experiment, Progress, Spec
from services.interpretability.core.report import (
    Axis,
    Bar,
    Bars,
    HeatMap,
    Report,
    Scalar,
    Table,
    json_digest,
    to_matrix,
)
from services.interpretability.core.studied_model import StudiedModel
from services.interpretability.deconstructed_runs import (
    INDICATOR_NAMES,
    LAYOUTS,
    Layout,
    MixerRun,
    ModelSize,
    Variant,
    train_and_measure,
)
from shared.errors import InvalidOption
from shared.registry import Card, Paper

__all__ = ["DeconstructionStudy", "DeconstructionStudySpec"]

PAPER_PERPLEXITY = {
    ("standard", "uniform"): 38.1,
    ("mlp", "uniform"): 993.5, ("mlp", "hybrid"): 45.8,
    ("approximate", "uniform"): 47.9, ("approximate", "hybrid"): 39.4,
    ("nonapproximate", "uniform"): 9025.9, ("nonapproximate", "hybrid"): 39.4,
    ("random_qk", "uniform"): 84.8, ("random_qk", "hybrid"): 39.3,
    ("fixed_qk", "uniform"): 79.1, ("fixed_qk", "hybrid"): 38.5,
    ("static_qk", "uniform"): 79.9, ("static_qk", "hybrid"): 38.7,
}  # fmt: skip
"""WikiText perplexity of the paper's models of 500 M parameters."""


_RECIPE = (
    "The paper's recipe, for a GPU: 15 B of SlimPajama at length 2,048, 500 k tokens a step, Adam (0.9, 0.9999), "
    "4e-4 with 2,000 steps of warm-up and a cosine; 500 M parameters are width 896, 24 layers, 14 heads."
)


class MixerCell(NamedTuple):
    """One run: what is trained."""

    variant: Variant
    layout: Layout
    seed: int

    @property
    def name(self) -> str:
        """As tables and pictures call it, without its seed."""
        return "standard" if self.variant == "standard" else f"{self.layout} {self.variant}"


class DeconstructionStudySpec(Spec):
    """Which models are trained, how often, how long, how large, and on what."""

    variants: list[Variant] = Field(
        ["standard", "nonapproximate", "mlp"],
        min_length=1,
        max_length=7,
        description="standard, mlp, approximate, nonapproximate, random_qk, fixed_qk, static_qk. standard is always "
        "trained: the others are compared with it.",
    )
    layouts: list[Layout] = Field(
        ["uniform", "hybrid"],
        min_length=1,
        max_length=2,
        description="uniform: in all layers; hybrid: in every other one, with standard attention between.",
    )
    seeds: list[int] = Field([1], min_length=1, max_length=10, description="A run per seed; spread is over them.")
    steps: int = Field(2000, ge=1, le=100_000, description="Steps of AdamW of each run.")
    size: ModelSize = Field(ModelSize(), description="How large the models are.")
    data: Literal["library", "text"] = Field("library", description="Python's own text, or the `text` that is sent.")
    text: str | None = Field(None, max_length=5_000_000, description="For data=text: what to learn and to test on.")


class DeconstructionStudy(Experiment[DeconstructionStudySpec]):
    """What a language model learns without an ingredient of attention."""

    In = DeconstructionStudySpec
    route: ClassVar[str] = "deconstruction/study"
    card: ClassVar[Card] = Card(
        name="deconstruction-study", task="probe", licence="Apache-2.0",
        summary="Trains small models with simpler mixers, in all layers or in every other one, and compares them.",
        paper=Paper(title="Deconstructing Attention: Investigating Design Principles for Effective Language Modeling",
                    venue="arXiv:2510.11602", year=2025, url="https://arxiv.org/abs/2510.11602"),
        notes=(
            "Bytes are the tokens. The models are a thousandth of the paper's: compare orders, not numbers.",
            _RECIPE,
            NO_GRAPH,
        ),
        example={
            "lm": EXAMPLE_LM, "seed": 0, "variants": ["standard", "nonapproximate", "mlp"], "layouts": ["hybrid"],
            "seeds": [1], "steps": 3,
            "size": {"width": 16, "layers": 2, "heads": 2, "context": 32, "batch": 2},
        },
    )  # fmt: skip

    def load_model(self, name: str | None) -> StudiedModel:
        """What stands for the models that are trained here: of `lm` only the tokens count, and those are bytes."""
        found = self.models.get(EXAMPLE_LM if name is None else name)
        return replace(found, name="deconstructed-lm", weights_sha256=json_digest("trained here"))

    def cost(self, spec: DeconstructionStudySpec, subject: StudiedModel) -> Cost:
        """A cell per run; no model that was there before is called."""
        _check_spec(spec)
        return Cost(forwards=0, tokens=0, cells=len(_list_cells(spec)))

    def estimate(self, spec: DeconstructionStudySpec, subject: StudiedModel) -> Report:
        """Runs, steps, and the time of them at the speed of two steps of standard attention."""
        told = super().estimate(spec, subject)
        runs = len(_list_cells(spec))
        run = _run_of(spec, MixerCell("standard", "uniform", 1))
        net = run.network()
        (batch,) = run.batches(0, np.random.default_rng(0))
        times = []
        for _ in range(2):  # the first one pays for lazy set-up
            begun = time.perf_counter()
            run.loss(net, batch).backward()  # type: ignore[no-untyped-call]
            times.append(time.perf_counter() - begun)
        took = Scalar(value=round(min(times) * runs * spec.steps, 1), unit="s", note="At the speed of a step here.")
        counts = {"runs": Scalar(value=runs), "steps": Scalar(value=runs * spec.steps, note="Of all runs together.")}
        return told.model_copy(update={"scalars": {**told.scalars, **counts, "seconds": took}})

    def run(self, spec: DeconstructionStudySpec, subject: StudiedModel, progress: Progress) -> Report:
        """A cell per run."""
        found: dict[str, list[dict[str, Any]]] = {}

        def train(cell: MixerCell) -> dict[str, Any]:
            content = {**_cell_content(spec, cell), "torch": torch.__version__}
            return train_and_measure(_run_of(spec, cell), self.store.work_folder(content), progress.cell_context())

        for cell, value in progress.each(_list_cells(spec), lambda cell: _cell_content(spec, cell), train):
            found.setdefault(cell.name, []).append({**value, "variant": cell.variant, "layout": cell.layout})
        return _report(spec, found)


def _check_spec(spec: DeconstructionStudySpec) -> None:
    if spec.size.width % (2 * spec.size.heads):
        detail = f"size.width {spec.size.width} is no even multiple of size.heads {spec.size.heads}."
        raise InvalidOption(detail, hint="Rotary positions turn pairs inside each head.", field="size")
    if (spec.data == "text") != (spec.text is not None):
        raise InvalidOption("data=text needs a text, and a text needs data=text.", field="text")
    least = 40 * (spec.size.context + 1)
    if spec.text is not None and (size := len(spec.text.encode())) < least:
        detail = f"text has {size:,} bytes; {least:,} are needed for windows of {spec.size.context} to learn and test."
        raise InvalidOption(detail, field="text")


def _list_cells(spec: DeconstructionStudySpec) -> list[MixerCell]:
    """Standard attention first, once per seed: its layouts are the same model."""
    others = [variant for variant in dict.fromkeys(spec.variants) if variant != "standard"]
    seeds = list(dict.fromkeys(spec.seeds))
    layouts = [layout for layout in LAYOUTS if layout in spec.layouts]
    first = [MixerCell("standard", "uniform", seed) for seed in seeds]
    return first + [MixerCell(v, layout, seed) for layout in layouts for v in others for seed in seeds]


def _run_of(spec: DeconstructionStudySpec, cell: MixerCell) -> MixerRun:
    return MixerRun.of(cell.variant, cell.layout, cell.seed, spec.steps, spec.size, spec.text)


def _cell_content(spec: DeconstructionStudySpec, cell: MixerCell) -> dict[str, Any]:
    """What a run depends on, beside code and versions."""
    run = _run_of(spec, cell)
    return {**cell._asdict(), "steps": spec.steps, "size": spec.size.model_dump(), "data": run.split("train").digest}


def _report(spec: DeconstructionStudySpec, found: dict[str, list[dict[str, Any]]]) -> Report:
    title = "Deconstruction study"
    if not found:
        return Report(title=title)
    size = next(iter(found.values()))[0]["parameters"]
    warning = (
        f"Models of {size:,} parameters after {spec.steps:,} steps: the order may say something, the sizes of "
        "differences do not carry over."
    )
    return Report(
        title=title,
        warnings=[warning],
        scalars={"runs": Scalar(value=sum(map(len, found.values()))), "steps": Scalar(value=spec.steps)},
        tables=[_paper_table(found), _state_table(found), _speed_table(found)],
        bars=[
            Bars(
                name="bits per byte",
                unit="bits",
                caption="Held-out text; the line spans a deviation over seeds.",
                bars=[_bar(name, runs) for name, runs in found.items()],
            )
        ],
        grids=[_curve_map(found), *_indicator_maps(spec, found)],
    )


def _paper_table(found: dict[str, list[dict[str, Any]]]) -> Table:
    base = _mean(found["standard"], "bits")[0] if "standard" in found else None
    rows: list[list[Any]] = []
    for name, runs in found.items():
        mean, spread = _mean(runs, "bits")
        skip = _mean(runs, "bits_skip")[0] if "bits_skip" in runs[0] else None
        paper = PAPER_PERPLEXITY.get((runs[0]["variant"], runs[0]["layout"]))
        rows.append([name, len(runs), mean, spread, mean / base - 1 if base else None, skip, paper])
    return Table(
        name="against the paper",
        rows=rows,
        columns=["model", "seeds", "bits/byte", "sd", "over standard", "without its layers", "paper's perplexity"],
        caption="Held-out bits per byte of ours; WikiText perplexity of the paper's 500 M models (standard 38.1).",
    )


def _state_table(found: dict[str, list[dict[str, Any]]]) -> Table:
    rows: list[list[Any]] = [
        [name, runs[0]["parameters"], sum(runs[0]["state_bytes"]), " ".join(map(str, runs[0]["state_bytes"]))]
        for name, runs in found.items()
    ]
    return Table(
        name="decode state",
        columns=["model", "parameters", "bytes", "bytes per layer"],
        rows=rows,
        caption="What a stream holds after a whole context, measured, in float32.",
    )


def _speed_table(found: dict[str, list[dict[str, Any]]]) -> Table:
    rows: list[list[Any]] = [
        [name, *(round(fmean(run["speed"][kind] for run in runs)) for kind in ("train", "read"))]
        for name, runs in found.items()
    ]
    return Table(
        name="speed",
        columns=["model", "trained tokens/s", "read tokens/s"],
        rows=rows,
        caption="By the clock of the machine that trained them: this table differs from run to run.",
    )


def _curve_map(found: dict[str, list[dict[str, Any]]]) -> HeatMap:
    steps = [step for step, _ in next(iter(found.values()))[0]["curve"]]
    curves = {name: np.mean([[bits for _, bits in run["curve"]] for run in runs], 0) for name, runs in found.items()}
    return HeatMap(
        name="curves",
        values=to_matrix(curves.values()),
        unit="bits/byte",
        rows=Axis(label="model", ticks=list(curves)),
        columns=Axis(label="step", ticks=[str(step) for step in steps]),
        caption="Validation bits per byte over the steps, mean over seeds: lower is better.",
    )


def _indicator_maps(spec: DeconstructionStudySpec, found: dict[str, list[dict[str, Any]]]) -> list[HeatMap]:
    """A grid per indicator: models by layers, mean over heads and seeds."""
    axes: dict[str, Any] = {
        "rows": Axis(label="model", ticks=list(found)),
        "columns": Axis(label="layer", ticks=[str(layer) for layer in range(spec.size.layers)]),
    }

    def values(kind: str) -> list[list[float | None]]:
        of = [
            [[np.nan if layer is None else layer[kind] for layer in run["indicators"]] for run in runs]
            for runs in found.values()
        ]
        return to_matrix([np.mean(runs, 0) for runs in of])

    return [
        HeatMap(
            name=kind,
            values=values(kind),
            **axes,
            caption=f"{kind.replace('_', ' ')} of the maps per layer, mean over heads; empty where nothing is mixed.",
        )
        for kind in (*INDICATOR_NAMES, "diversity")
    ]


def _bar(name: str, runs: list[dict[str, Any]]) -> Bar:
    mean, spread = _mean(runs, "bits")
    if spread is None:
        return Bar(label=name, value=mean)
    return Bar(label=name, value=mean, low=mean - spread, high=mean + spread)


def _mean(runs: list[dict[str, Any]], key: str) -> tuple[float, float | None]:
    """Mean and deviation over seeds; no deviation of one."""
    values = [run[key] for run in runs]
    return fmean(values), stdev(values) if len(values) > 1 else None
