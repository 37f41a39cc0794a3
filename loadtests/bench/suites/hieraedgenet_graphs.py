"""Savings of a graph without Fourier operators: HieraEdgeNet with matrices against its plain export, one thread.

Random weights: time does not depend on them. Both graphs are compared with torch before they are timed.
"""

import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from loadtests.bench.result import Row, Table, row
from loadtests.bench.suites.partial_networks import make_eager_call
from loadtests.bench.turns import milliseconds, threads
from services.detection.layers import fuse_batch_norms
from services.detection.models.hieraedgenet_network import HieraEdgeNet, with_transform
from shared.engines.onnx import OnnxEngine
from shared.export.onnx_export import export_onnx

BASELINE = "ONNX Runtime, DFT operators"
OURS = "ONNX Runtime, matrices (served)"

SIDE = 640


def measure(rounds: int = 3, count: int = 1) -> Table:
    """Alternate both graphs and torch; medians over rounds."""
    with threads(1), tempfile.TemporaryDirectory() as folder:
        contenders, apart = _contenders(Path(folder))
        found = milliseconds(contenders, rounds, min(count, 3), time.process_time)
    base = statistics.median(found[BASELINE])
    rows: list[Row] = [row(name, "CPU ms / picture", values, base) for name, values in found.items()]
    return Table(
        suite="hieraedgenet_graphs",
        title="HieraEdgeNet without Fourier operators",
        how=f"batch 1, {SIDE}×{SIDE}, 120 classes, one thread, batch norms folded, random weights",
        baseline=BASELINE,
        rows=rows,
        targets={
            "plain export, times the served graph (at least)": (base / statistics.median(found[OURS]), 3.0),
            "difference of the two graphs' boxes, pixels (at most)": (apart, 0.02),
        },
    )


def _contenders(folder: Path) -> tuple[dict[str, Callable[[], Any]], float]:
    """The contenders, and how far apart the boxes of both graphs are."""
    torch.manual_seed(0)
    net, x = fuse_batch_norms(HieraEdgeNet(120, "described")), torch.rand(1, 3, SIDE, SIDE)
    for gate in (module for name, module in net.named_parameters() if name.endswith("fgm.alpha")):
        torch.nn.init.constant_(gate, 0.5)  # as it starts, the gate would hide its filter
    feeds, made, boxes = {"x": x.numpy()}, {}, []
    for title, transform in ((BASELINE, "dft"), (OURS, "matrices")):
        form = with_transform(net, transform)  # type: ignore[arg-type]  # the literal is lost in the tuple
        path = folder / f"{transform}.onnx"
        export_onnx(form, path, {"x": x}, ["predictions"], call=form.predictions)
        made[title] = partial(OnnxEngine(path, threads=1).run, feeds)
        boxes.append(made[title]()["predictions"][:, :4])

    return {**made, "torch, FFT": make_eager_call(net.predictions, x)}, float(np.abs(boxes[0] - boxes[1]).max())
