"""Report of the deconstruction study: the paper's table next to ours, decode state, speed, curves and indicators.

Knows the measurements of runs; trains nothing.
"""

from statistics import fmean, stdev
from typing import Any

import numpy as np

from fovea_circuits.experiments.indicators import INDICATOR_NAMES
from fovea_recipes.interpretability.experiments.deconstruction_study.spec import DeconstructionStudySpec
from services.interpretability.core.report import Bar, Bars, HeatMap, Report, Scalar, Table, heat_map

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
    columns = "model, seeds, bits/byte, sd, over standard, without its layers, paper's perplexity"
    caption = "Held-out bits per byte of ours; WikiText perplexity of the paper's 500 M models (standard 38.1)."
    return Table.of("against the paper", columns, rows, caption)


def _state_table(models: Measurements) -> Table:
    rows = [
        (name, runs[0]["parameters"], sum(runs[0]["state_bytes"]), " ".join(map(str, runs[0]["state_bytes"])))
        for name, runs in models.items()
    ]
    caption = "Memory of a stream after a whole context, measured, in float32."
    return Table.of("decode state", "model, parameters, bytes, bytes per layer", rows, caption)


def _speed_table(models: Measurements) -> Table:
    rows = [
        (name, *(round(fmean(run["speed"][kind] for run in runs)) for kind in ("train", "read")))
        for name, runs in models.items()
    ]
    caption = "By the clock of the machine that trained them: this table differs from run to run."
    return Table.of("speed", "model, trained tokens/s, read tokens/s", rows, caption)


def _curve_map(models: Measurements) -> HeatMap:
    steps = [step for step, _ in next(iter(models.values()))[0]["curve"]]
    curves = {name: np.mean([[bits for _, bits in run["curve"]] for run in runs], 0) for name, runs in models.items()}
    caption = "Validation bits per byte over the steps, mean over seeds: lower is better."
    return heat_map("curves", curves.values(), ("model", curves), ("step", steps), caption, unit="bits/byte")


def _indicator_maps(spec: DeconstructionStudySpec, models: Measurements) -> list[HeatMap]:
    """A grid per indicator: models by layers, mean over heads and seeds."""
    axes = ("model", models), ("layer", range(spec.size.layers))

    def draw_map(kind: str) -> HeatMap:
        of = [
            [[np.nan if layer is None else layer[kind] for layer in run["indicators"]] for run in runs]
            for runs in models.values()
        ]
        caption = f"{kind.replace('_', ' ')} of the maps per layer, mean over heads; empty where nothing is mixed."
        return heat_map(kind, [np.mean(runs, 0) for runs in of], *axes, caption)

    return [draw_map(kind) for kind in (*INDICATOR_NAMES, "diversity")]


def _bar(name: str, runs: list[dict[str, Any]]) -> Bar:
    mean, spread = _mean(runs, "bits")
    if spread is None:
        return Bar(label=name, value=mean)
    return Bar(label=name, value=mean, low=mean - spread, high=mean + spread)


def _mean(runs: list[dict[str, Any]], key: str) -> tuple[float, float | None]:
    """Mean and deviation over seeds; no deviation of one."""
    values = [run[key] for run in runs]
    return fmean(values), stdev(values) if len(values) > 1 else None
