"""Every vision model that is served, as ONNX Runtime and as eager torch run it: the same inputs, one thread, by turns.

Inputs are those that a model's own example becomes: they are overheard while it is answered once.
"""

import statistics
import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

from fovea.errors import Fault, FoveaError
from loadtests.bench.result import Row, Table, row
from loadtests.bench.turns import milliseconds, threads
from shared.engines.onnx import OnnxEngine
from shared.engines.torch import TorchEngine
from shared.registry import CallContext, LoadContext, Servable
from shared.registry.discovery import servables

SERVICES = ("vision-restoration", "medical-seg", "detection")
ENGINES: Mapping[str, type[OnnxEngine | TorchEngine]] = {"torch": TorchEngine, "onnx": OnnxEngine}

PART_MS = 250
"""Calls of one turn take about so long together, but are never fewer than one."""

Call = Callable[[], Any]


def measure(rounds: int = 7, count: int = 20) -> Table:
    """Each model's two engines take turns; medians over rounds."""
    rows: list[Row] = []
    with threads(1), tempfile.TemporaryDirectory() as folder:
        for service in SERVICES:
            for name, kind in servables(service).items():
                rows += _rows(name, kind, Path(folder), rounds, count)
    slowest = max((r for r in rows if r.name.endswith("ONNX Runtime")), key=lambda r: r.ratio)
    return Table(
        suite="vision_engines",
        title="Vision models: ONNX Runtime against eager torch",
        how="one thread, weights of the package, the input of each model's example; ratios to the same model in torch",
        baseline="the same model in torch",
        rows=rows,
        targets={
            f"ONNX Runtime's share of torch's time, worst model ({slowest.name.split(',')[0]})": (slowest.ratio, 1.0)
        },
    )


def _rows(name: str, kind: type[Servable[Any, Any]], folder: Path, rounds: int, count: int) -> list[Row]:
    calls = {engine: _overheard(kind, engine, folder) for engine in ENGINES}
    if not all(calls.values()):
        return []  # it has no network of its own to run, or none in this engine
    made: dict[str, Call] = {engine: call for engine, call in calls.items() if call is not None}
    once = statistics.median(milliseconds(made, 1, 1)["torch"])
    found = milliseconds(made, rounds, min(count, max(1, round(PART_MS / once))))
    base = statistics.median(found["torch"])
    shown = {"torch": "torch", "onnx": "ONNX Runtime"}
    return [row(f"{name}, {shown[engine]}", "ms / run", values, base) for engine, values in found.items()]


def _overheard(kind: type[Servable[Any, Any]], engine: str, folder: Path) -> Call | None:
    """The last run of the engine behind one answer to the model's example, to be run again."""
    runs: list[Call] = []
    plain = ENGINES[engine].run

    def run(self: Any, inputs: Mapping[str, np.ndarray]) -> Any:
        runs.append(partial(plain, self, {key: array.copy() for key, array in inputs.items()}))
        return plain(self, inputs)

    model = kind.load(LoadContext(engine=engine, cache=folder, weights=folder / "none", threads=1))
    with patch.object(ENGINES[engine], "run", run):
        (answer,) = model.predict([model.example()], CallContext())
    if isinstance(answer, FoveaError):
        raise Fault(f"{model.card.name} could not answer its example.") from answer
    return runs[-1] if runs else None
