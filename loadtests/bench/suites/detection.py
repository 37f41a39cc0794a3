"""Cost of the served form of YOLO9tr: the main branch alone, fused, against the whole network; ONNX Runtime beside.

Official sizes and random weights: time does not depend on them. That the boxes are equal is checked before the clock.
"""

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fovea.errors import Fault
from loadtests.bench.result import Row, Table, row
from loadtests.bench.suites.partial_networks import make_eager_call
from loadtests.bench.turns import milliseconds, threads
from services.detection.boxes.geometry import decode
from services.detection.models.yolo9tr import Yolo9trBoxDetector
from shared.engines.onnx import OnnxEngine
from shared.export.onnx_export import export_onnx
from shared.registry import network

BASELINE = "both branches, torch"
SERVED = "main branch fused, torch"
GRAPH = "main branch fused, ONNX Runtime"

SIDE, CLASSES = 640, 7


def measure(rounds: int = 5, count: int = 1) -> Table:
    """Alternate the forms; medians over rounds."""
    with threads(1), tempfile.TemporaryDirectory() as folder:
        found = milliseconds(_contenders(Path(folder)), rounds, min(count, 2), time.process_time)
    middle = {name: statistics.median(values) for name, values in found.items()}
    rows: list[Row] = [row(name, "CPU ms / picture", values, middle[BASELINE]) for name, values in found.items()]
    return Table(
        suite="detection",
        title="YOLO9tr, pruned and fused, at its published size",
        how=f"batch 1, {SIDE}×{SIDE}, one thread, size s, {CLASSES} classes, random weights "
        "(served is size l with 2 classes); boxes within 0.02 px",
        baseline=BASELINE,
        rows=rows,
        targets={"main branch fused, times faster": (middle[BASELINE] / middle[SERVED], 2.5)},
    )


@torch.no_grad()
def _contenders(folder: Path) -> dict[str, Callable[[], Any]]:
    torch.manual_seed(0)
    whole = network("yolo9tr", classes=CLASSES).eval()
    served, x = Yolo9trBoxDetector.prepare(whole), torch.rand(1, 3, SIDE, SIDE)
    apart = (decode(whole(x)[0], CLASSES) - served.predictions(x)).abs().max().item()  # type: ignore[operator]  # a method, by name
    if apart > 0.02:
        raise Fault(f"The served form differs from the network by {apart:.1e} pixels.")
    export_onnx(served, folder / "served.onnx", {"images": x}, ["predictions"], call=served.predictions)  # type: ignore[arg-type]  # as above
    engine, feeds = OnnxEngine(folder / "served.onnx", threads=1), {"images": np.ascontiguousarray(x.numpy())}
    return {BASELINE: make_eager_call(whole, x), SERVED: make_eager_call(served, x), GRAPH: lambda: engine.run(feeds)}
