"""What the attention methods cost in quality on SmolLM2: needles by length and depth, and fidelity to dense.

The same evaluations as `fovea needle` and `fovea fidelity`, in bfloat16, on the help topics that ship with Python.
Nothing is timed: a row's median is a mean here, and its low and high are the extreme cells.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

from loadtests.bench.result import Row, Table
from services.llm_longctx.evaluation import FidelitySpec, NeedleReport, NeedleSpec, run_fidelity, run_needle
from services.llm_longctx.heat import heat_map, sheet
from services.llm_longctx.models.smollm2 import SmolLM2
from services.llm_longctx.speaker import Speaker
from shared.registry import Place, Run

PICTURE = Path(__file__).parents[3] / "docs/images/needles.png"
DEPTHS = (0, 50, 100)

METHODS: Mapping[str, Mapping[str, Any]] = {
    "dense": {"method": "dense"},
    "duo": {"method": "duo"},
    "duo, plan default, half the bytes": {
        "method": "duo",
        "plan": "default",
        "kv_ratio": 0.5,
        "sink": 16,
        "recent": 128,
    },
    "duo, plan gates, half the bytes": {"method": "duo", "plan": "gates", "kv_ratio": 0.5, "sink": 16, "recent": 128},
    "razor": {"method": "razor", "window_min": 256, "window_div": 16},
    "recycled": {"method": "recycled", "budget": 512, "stride": 16},
    "flexprefill": {"method": "flexprefill", "min_budget": 256},
    "dhsa": {"method": "dhsa", "budget": 512},
    "power": {"method": "power", "block": 64},
}
"""Windows and budgets scaled to these lengths."""


@dataclass(frozen=True)
class Quality(Table):
    """The table, and the needle grids [depth][length] by method."""

    grids: dict[str, Any] = field(default_factory=dict)


def measure(rounds: int = 1, count: int = 1000) -> Quality:
    """Needles (`rounds` per cell, at most three) in `count` and half as many tokens, fidelity behind `count`."""
    with tempfile.TemporaryDirectory() as folder:
        place = Place(cache=Path(folder), weights=Path(folder), options={"llm_dtype": "bfloat16"})
        model = SmolLM2.load(place)
        try:
            found = {name: _needles(model.speaker, how, count, rounds) for name, how in METHODS.items()}
            rows = [row for name, how in METHODS.items() for row in _rows(model.speaker, name, how, found, count)]
        finally:
            model.close()
    if count > 200:
        labels = [f"{d} %" for d in DEPTHS]
        maps = {name: heat_map(r.recall, labels, [str(n) for n in r.lengths]) for name, r in found.items()}
        PICTURE.write_bytes(sheet(maps, 3))
    return Quality(
        suite="longctx_quality", title="What attention methods cost in quality", baseline="dense", rows=rows,
        how=f"SmolLM2-135M-Instruct in bfloat16; needles in {count // 2} and {count:,} tokens at depths {DEPTHS} "
        f"percent (share of the hidden words that are answered); fidelity over 24 tokens behind {count:,}, "
        "teacher-forced. Means, and the extreme cells",
        grids={name: r.recall for name, r in found.items()},
    )  # fmt: skip


def _needles(speaker: Speaker, how: Mapping[str, Any], count: int, rounds: int) -> NeedleReport:
    asked = {"longctx": how, "lengths": [count // 2, count], "depths": DEPTHS, "steps": 24, "needles": min(rounds, 3)}
    return run_needle(speaker, NeedleSpec.model_validate(asked), Run())


def _rows(
    speaker: Speaker, name: str, how: Mapping[str, Any], found: Mapping[str, NeedleReport], count: int
) -> list[Row]:
    report, base = found[name], max(found["dense"].mean, 1e-9)
    cells = [x for line in report.recall for x in line]
    ratio = f"KV {report.kv_ratio[-1]:.2f} of dense"
    rows = [Row(f"needle recall, {name}", "share", report.mean, min(cells), max(cells), report.mean / base, ratio)]
    if name == "dense":
        return rows
    spec = FidelitySpec.model_validate({"longctx": how, "lengths": [count], "steps": 24})
    told = run_fidelity(speaker, spec, Run()).rows
    kl, same = [r.kl for r in told], [r.agreement for r in told]
    note = "; ".join(
        f"{r.task}: KL {r.kl:.3f}, perplexity {r.perplexity:.3g} (dense {r.perplexity_dense:.3g}), "
        f"right {r.right:.2f}" for r in told
    )  # fmt: skip
    rows.append(Row(f"KL(dense ‖ {name})", "nats/token", fmean(kl), min(kl), max(kl), 1.0, note))
    rows.append(Row(f"top-1 agreement, {name}", "share", fmean(same), min(same), max(same), fmean(same), ""))
    return rows
