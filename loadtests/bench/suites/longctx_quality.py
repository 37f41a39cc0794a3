"""What the attention methods cost in quality on SmolLM2: needles by length and depth, and fidelity to dense.

The same evaluations as `fovea needle` and `fovea fidelity`, in bfloat16, on the help topics that ship with Python.
Nothing is timed: a row's median is a mean here, and its low and high are the extreme cells. Reports are kept as they
come, so a run that was stopped goes on where it was; a whole one forgets them.
"""

import hashlib
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any, TypeVar

from pydantic import BaseModel

from fovea_lab.heatmap import draw_contact_sheet, draw_heatmap
from fovea_lab.method_quality import (
    FidelityReport,
    FidelityRequest,
    NeedleReport,
    NeedleRequest,
    run_fidelity,
    run_needle,
)
from loadtests.bench.result import Row, Table
from services.llm_longctx.models.smollm2 import SmolLM2
from services.llm_longctx.serving.adapters.decoder import DecoderAdapter
from shared.registry import CallContext, LoadContext

ROOT = Path(__file__).parents[3]
PICTURE = ROOT / "docs/images/needles.png"
KEPT = ROOT / "build/longctx_quality"
DEPTHS = (0, 25, 50, 75, 100)
STEPS = 24

_DUO = {"method": "duo", "sink": 16, "recent": 128}
METHODS: Mapping[str, Mapping[str, Any]] = {
    "dense": {"method": "dense"},
    "duo": _DUO,
    "duo, plan gates, half of the bytes": {**_DUO, "plan": "gates", "kv_ratio": 0.5},
    "razor": {"method": "razor", "window_min": 256, "window_div": 16},
    "recycled": {"method": "recycled", "budget": 512, "stride": 16},
    "flexprefill": {"method": "flexprefill", "min_budget": 256},
    "dhsa": {"method": "dhsa", "budget": 512},
    "power": {"method": "power", "block": 64},
    "duo x flexprefill x recycled": {
        **_DUO, "prefill": {"method": "flexprefill", "min_budget": 256},
        "decode": {"method": "recycled", "budget": 512, "stride": 16},
    },
}  # fmt: skip
"""Windows and budgets scaled to these lengths."""

_Report = TypeVar("_Report", bound=BaseModel)


@dataclass(frozen=True)
class Quality(Table):
    """The table, and the needle grids [depth][length] by method."""

    grids: dict[str, Any] = field(default_factory=dict)


def measure(rounds: int = 2, count: int = 2048) -> Quality:
    """Needles (`rounds` per cell, at most three) in `count` tokens and half of them, and fidelity behind the half."""
    lengths = [count // 2, count]
    with tempfile.TemporaryDirectory() as folder:
        place = LoadContext(cache=Path(folder), weights=Path(folder), options={"llm_weights": "bf16"})
        model = SmolLM2.load(place)
        try:
            found = {name: _needles(model.adapter, how, lengths, rounds) for name, how in METHODS.items()}
            base = found["dense"].mean
            rows = [_recall(name, report, base) for name, report in found.items()]
            for name, how in METHODS.items():
                rows += _fidelity(model.adapter, name, how, lengths[:1]) if name != "dense" else ()
        finally:
            model.close()
    if count > 200:
        labels = [f"{d} %" for d in DEPTHS]
        maps = {name: draw_heatmap(r.recall, labels, [str(n) for n in r.lengths]) for name, r in found.items()}
        PICTURE.write_bytes(draw_contact_sheet(maps, 5))
        shutil.rmtree(KEPT, ignore_errors=True)
    return Quality(
        suite="longctx_quality",
        title="What attention methods cost in quality",
        baseline="dense",
        rows=rows,
        how=f"SmolLM2-135M-Instruct in bfloat16, prompts of {' and '.join(f'{n:,}' for n in lengths)} tokens; {rounds} "
        f"needles each at depths of {', '.join(map(str, DEPTHS))} percent, {len(lengths) * len(DEPTHS) * rounds} "
        f"answers a method (share of the hidden words that are answered); fidelity over {STEPS} tokens behind "
        f"{lengths[0]:,} of prose, or of random tokens that come twice, teacher-forced. Means, and the extreme cells",
        grids={name: r.recall for name, r in found.items()},
    )


def _needles(speaker: DecoderAdapter, how: Mapping[str, Any], lengths: Sequence[int], rounds: int) -> NeedleReport:
    asked = {"longctx": how, "lengths": lengths, "depths": DEPTHS, "steps": STEPS, "needles": min(rounds, 3)}
    spec = NeedleRequest.model_validate(asked)
    return _once(spec, NeedleReport, lambda: run_needle(speaker, spec, CallContext()))


def _recall(name: str, report: NeedleReport, base: float) -> Row:
    cells = [x for line in report.recall for x in line]
    note = f"KV {', '.join(f'{x:.2f}' for x in report.kv_ratio)} of dense"
    return Row(f"needle recall, {name}", "share", report.mean, min(cells), max(cells), report.mean / base, note)


def _fidelity(speaker: DecoderAdapter, name: str, how: Mapping[str, Any], lengths: Sequence[int]) -> list[Row]:
    spec = FidelityRequest.model_validate({"longctx": how, "lengths": lengths, "steps": STEPS})
    told = _once(spec, FidelityReport, lambda: run_fidelity(speaker, spec, CallContext())).rows
    rows = []
    for task in spec.tasks:
        mine = [r for r in told if r.task == task]
        kl, same = [r.kl for r in mine], [r.agreement for r in mine]
        lost = fmean(r.perplexity / r.perplexity_dense for r in mine)
        note = f"top-1 agreement {fmean(same):.2f}; the ratio is of perplexities"
        rows.append(Row(f"KL(dense ‖ {name}), {task}", "nats/token", fmean(kl), min(kl), max(kl), lost, note))
    return rows


def _once(spec: BaseModel, kind: type[_Report], make: Callable[[], _Report]) -> _Report:
    """The report of a spec, kept from an earlier run that was stopped, or made now."""
    digest = hashlib.sha256(spec.model_dump_json().encode()).hexdigest()[:16]
    file = KEPT / f"{type(spec).__name__}-{digest}.json"
    if file.is_file():
        return kind.model_validate_json(file.read_text("utf8"))
    report = make()
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(report.model_dump_json(), "utf8")
    return report
