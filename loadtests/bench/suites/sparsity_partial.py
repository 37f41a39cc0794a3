"""What the sparsity claims of PATNet and FasterNet rest on: zeros in the served weights, and time without them.

A partial convolution is a full one whose kernel is zero outside one block of channels. Dense is the same network with
full 3×3 convolutions in the place of its mixings (in PATNet of attention too), as a graph in the engine that serves.
CPU time of one thread; both take turns.
"""

import statistics
import tempfile
import time
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from loadtests.bench.claiming import Claims, open_shipped, timing
from loadtests.bench.result import Row, row
from loadtests.bench.suites.partial_networks import graph
from loadtests.bench.turns import milliseconds
from services.detection.layers.partial import PartialConv
from shared.registry.discovery import shipped_weights
from shared.registry.weights import read_manifest

RUNS, CALLS = 40, 5
MODELS = ("fasternet", "patnet")


def measure(rounds: int = RUNS, count: int = CALLS) -> Claims:
    """Claims' facts; `rounds` times `count` pictures each (at most 5)."""
    made = [_model(name, rounds, min(count, CALLS)) for name in MODELS]
    sizes = ", ".join(f"{name} at {_side(name)} px" for name in MODELS)
    return Claims(
        suite="sparsity_partial",
        title="What the claims of PATNet and FasterNet rest on",
        baseline="full convolutions",
        how=f"the served classifiers ({sizes}), batch 1, ONNX Runtime, CPU time of one thread, {rounds} in turn",
        rows=[one for _, rows in made for one in rows],
        claims={name: facts for name, (facts, _) in zip(MODELS, made, strict=True)},
    )


def _model(name: str, rounds: int, calls: int) -> tuple[dict[str, Any], list[Row]]:
    net, manifest = open_shipped(name)
    dense = _dense(net)
    x = torch.rand(1, 3, *2 * [int(manifest.recipe["side"])])
    with tempfile.TemporaryDirectory() as folder:
        contenders = {key: graph(one, x, Path(folder) / f"{key}.onnx") for key, one in (("dense", dense), (name, net))}
        taken = milliseconds(contenders, rounds, calls, time.process_time)
    layers, share = _zeros(net)
    ratio = _multiplications(net, x) / _multiplications(dense, x)
    facts = {
        "sparsity_by_layer": layers,
        "sparsity_global": share,
        "theoretical_flops_ratio": round(ratio, 6),
        "measured": timing(
            taken[name],
            taken["dense"],
            batch=1,
            sequence=None,
            dtype="float32",
            kernel="ONNX Runtime, convolution of a quarter of the channels",
            dense_kernel="ONNX Runtime, convolution of all channels",
        ),
        "quality": {"metric": "top_1", "value": manifest.metrics["top_1"], "seeds": 1},
    }
    base = statistics.median(taken["dense"])
    note = f"{share:.3f} of the dense weights are zero, {ratio:.2f} of its multiplications"
    rows = [
        row(f"{name} with full convolutions", "CPU ms", taken["dense"], base),
        row(name, "CPU ms", taken[name], base, note),
    ]
    return facts, rows


def _side(name: str) -> int:
    return int(read_manifest(shipped_weights()[name]).recipe["side"])


def _dense(net: nn.Module) -> nn.Module:
    """The same network with a full convolution wherever it mixes a part of the channels."""
    twin = deepcopy(net)
    for block in [
        module for module in twin.modules() if isinstance(getattr(module, "spatial_mixing", None), PartialConv)
    ]:
        channels = sum(block.spatial_mixing.sizes)  # type: ignore[union-attr,arg-type]
        block.spatial_mixing = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
    return twin.eval()


def _zeros(net: nn.Module) -> tuple[dict[str, float], float]:
    """Share of zeros that each weight leaves out of the dense one in its place, by layer and over all of them."""
    channels = {
        f"{name}.partial_conv3.weight": sum(module.sizes)
        for name, module in net.named_modules()
        if isinstance(module, PartialConv)
    }
    shares, left_out, total = {}, 0, 0
    for key, tensor in net.state_dict().items():
        if tensor.dim() < 2:
            continue
        kept = int(tensor.count_nonzero())
        whole = channels[key] ** 2 * tensor[0, 0].numel() if key in channels else tensor.numel()
        shares[key] = round(1 - kept / whole, 6)
        left_out, total = left_out + whole - kept, total + whole
    return shares, round(left_out / total, 6)


@torch.inference_mode()
def _multiplications(net: nn.Module, x: torch.Tensor) -> int:
    """Multiplications of convolutions and linear layers for one picture."""
    counts: list[int] = []

    def count(module: Any, _inputs: Any, output: torch.Tensor) -> None:
        counts.append(output.numel() * int(np.prod(module.weight.shape[1:])))

    handles = [m.register_forward_hook(count) for m in net.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    net(x)
    for handle in handles:
        handle.remove()
    return sum(counts)
