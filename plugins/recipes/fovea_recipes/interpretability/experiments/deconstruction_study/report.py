"""Report of the deconstruction study: the paper's table next to ours, decode state, speed, curves and indicators.

Knows the measurements of runs; trains nothing.
"""

from statistics import fmean, stdev
from typing import Any

import numpy as np

from fovea_circuits.experiments.indicators import INDICATOR_NAMES
from fovea_recipes.interpretability.experiments.deconstruction_study.spec import DeconstructionStudySpec
from services.interpretability.core.report import Axis, Bar, Bars, HeatMap, Report, Scalar, Table, to_matrix

Measurements = dict[str, list[dict[str, Any]]]
"""Measurements of each model by its name, one entry per seed."""

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


def build_report(spec: DeconstructionStudySpec, models: Measurements) -> Report:
    """Return the report of a study, complete or as far as it came."""
    title = "Deconstruction study"
    if not models:
        return Report(title=title)
    size = next(iter(models.values()))[0]["parameters"]
    warning = (
        f"Models of {size:,} parameters after {spec.steps:,} steps: the order may say something, the sizes of "
        "differences do not carry over."
    )
    return Report(
        title=title,
        warnings=[warning],
        scalars={"runs": Scalar(value=sum(map(len, models.values()))), "steps": Scalar(value=spec.steps)},
        tables=[_paper_table(models), _state_table(models), _speed_table(models)],
        bars=[
            Bars(
                name="bits per byte",
                unit="bits",
                caption="Held-out text; the line spans a deviation over seeds.",
                bars=[_bar(name, runs) for name, runs in models.items()],
            )
        ],
        grids=[_curve_map(models), *_indicator_maps(spec, models)],
    )


def _paper_table(models: Measurements) -> Table:
    base = _mean(models["standard"], "bits")[0] if "standard" in models else None
    rows: list[list[Any]] = []
    for name, runs in models.items():
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


def _state_table(models: Measurements) -> Table:
    rows: list[list[Any]] = [
        [name, runs[0]["parameters"], sum(runs[0]["state_bytes"]), " ".join(map(str, runs[0]["state_bytes"]))]
        for name, runs in models.items()
    ]
    return Table(
        name="decode state",
        columns=["model", "parameters", "bytes", "bytes per layer"],
        rows=rows,
        caption="Memory of a stream after a whole context, measured, in float32.",
    )


def _speed_table(models: Measurements) -> Table:
    rows: list[list[Any]] = [
        [name, *(round(fmean(run["speed"][kind] for run in runs)) for kind in ("train", "read"))]
        for name, runs in models.items()
    ]
    return Table(
        name="speed",
        columns=["model", "trained tokens/s", "read tokens/s"],
        rows=rows,
        caption="By the clock of the machine that trained them: this table differs from run to run.",
    )


def _curve_map(models: Measurements) -> HeatMap:
    steps = [step for step, _ in next(iter(models.values()))[0]["curve"]]
    curves = {name: np.mean([[bits for _, bits in run["curve"]] for run in runs], 0) for name, runs in models.items()}
    return HeatMap(
        name="curves",
        values=to_matrix(curves.values()),
        unit="bits/byte",
        rows=Axis(label="model", ticks=list(curves)),
        columns=Axis(label="step", ticks=[str(step) for step in steps]),
        caption="Validation bits per byte over the steps, mean over seeds: lower is better.",
    )


def _indicator_maps(spec: DeconstructionStudySpec, models: Measurements) -> list[HeatMap]:
    """A grid per indicator: models by layers, mean over heads and seeds."""
    axes: dict[str, Any] = {
        "rows": Axis(label="model", ticks=list(models)),
        "columns": Axis(label="layer", ticks=[str(layer) for layer in range(spec.size.layers)]),
    }

    def values(kind: str) -> list[list[float | None]]:
        of = [
            [[np.nan if layer is None else layer[kind] for layer in run["indicators"]] for run in runs]
            for runs in models.values()
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
