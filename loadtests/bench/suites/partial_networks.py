"""Cost of attention on idle channels: PATNet-T2 against FasterNet-T2, as ONNX graphs and in torch, one thread.

Random weights: time does not depend on them.
"""

import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from loadtests.bench.result import Row, Table, row
from loadtests.bench.turns import milliseconds, threads
from shared.engines.onnx import OnnxEngine
from shared.export.onnx_export import export_onnx
from shared.registry import network

BASELINE = "FasterNet-T2, ONNX Runtime"
OURS = "PATNet-T2, ONNX Runtime"

NETWORKS: Mapping[str, tuple[str, dict[str, Any]]] = {
    "FasterNet-T2": ("fasternet", {"size": "t2"}),
    "PATNet-T2": ("patnet", {"size": "t2"}),
    "PATNet-T2 with spatial gate": ("patnet", {"size": "t2", "spatial": True}),
}

SHAPE = (1, 3, 224, 224)


def measure(rounds: int = 5, count: int = 3) -> Table:
    """Alternate all networks in both engines; medians over rounds."""
    with threads(1), tempfile.TemporaryDirectory() as folder:
        found = milliseconds(_contenders(Path(folder)), rounds, min(count, 10), time.process_time)
    base = statistics.median(found[BASELINE])
    rows: list[Row] = [row(name, "CPU ms / picture", values, base) for name, values in found.items()]
    return Table(
        suite="partial_networks",
        title="PATNet against FasterNet",
        how="batch 1, 224×224, one thread; classifiers with 1,000 classes and random weights",
        baseline=BASELINE,
        rows=rows,
        targets={"PATNet-T2, times FasterNet-T2 (at most)": (statistics.median(found[OURS]) / base, 0.85)},
    )


def _contenders(folder: Path) -> dict[str, Callable[[], Any]]:
    made: dict[str, Callable[[], Any]] = {}
    x = torch.rand(SHAPE)
    for title, (name, config) in NETWORKS.items():
        net = network(name, **config).eval()
        made[f"{title}, ONNX Runtime"] = graph(net, x, folder / f"{title}.onnx")
        made[f"{title}, torch"] = make_eager_call(net, x)
    return made


def graph(net: nn.Module, x: Tensor, path: Path) -> Callable[[], Any]:
    """A call of the network's graph on x, exported to `path`, on one thread."""
    export_onnx(net, path, {"x": x}, ["logits"], call=net.logits)  # type: ignore[arg-type]  # a method, by name
    return partial(OnnxEngine(path, threads=1).run, {"x": np.ascontiguousarray(x.numpy())})


def make_eager_call(net: Callable[[Tensor], Any], x: Tensor) -> Callable[[], Any]:
    """A call of a network, or of its method, on x in torch, without gradients."""

    def call() -> Any:
        with torch.inference_mode():
            return net(x)

    return call
