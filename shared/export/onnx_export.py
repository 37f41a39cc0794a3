"""ONNX export of torch networks, for TensorRT too; a file is in place once its parity with the network is measured."""

import os
import threading
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from torch import Tensor, nn

from fovea.errors import Fault
from shared.export.parity import Parity

OPSET = 17

Axes = Mapping[str, Mapping[int, str]]

# torch's exporter keeps its state in globals: models that load side by side must not export side by side.
_EXPORT_LOCK = threading.Lock()


class _CallModule(nn.Module):
    """A module whose forward is some function of a network: exporters take modules only."""

    def __init__(self, network: nn.Module, call: Callable[..., Any]) -> None:
        super().__init__()
        self.network = network
        self.call = call

    def forward(self, *tensors: Tensor) -> Any:
        return self.call(*tensors)


def export_onnx(
    network: nn.Module,
    path: Path,
    inputs: Mapping[str, Tensor],
    outputs: Sequence[str],
    *,
    call: Callable[..., Any] | None = None,
    dynamic: Axes | None = None,
    probes: Sequence[Mapping[str, Tensor]] = (),
    tolerance: float = 1e-4,
) -> Parity:
    """Export a network, compare both forms, and only then put the file in place, at once or not at all.

    `inputs` are example tensors in the order in which the network takes them, `call` a function to export instead of
    the network itself, `dynamic` tensor → axis → name of axes of any length, `probes` further inputs to compare on.
    Raises Fault where ONNX Runtime differs from torch by more than `tolerance`, relative to the largest value or to 1.
    """
    module = _CallModule(network, call or network).eval()
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        _write(module, draft, inputs, outputs, dynamic or {})
        parity = _compare(module, draft, (inputs, *probes), outputs)
        if parity.max_difference > tolerance * max(1.0, parity.max_value):
            raise Fault(f"The ONNX graph differs from the network by {parity.max_difference:.1e}.")
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
    return parity


def _write(module: nn.Module, path: Path, inputs: Mapping[str, Tensor], outputs: Sequence[str], axes: Axes) -> None:
    """Export by tracing: for networks without branches it is exact, and ten times faster than `dynamo=True`."""
    with _EXPORT_LOCK, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch announces the other exporter; the comparison decides, not the warning
        torch.onnx.export(
            module,
            tuple(inputs.values()),
            path,
            input_names=list(inputs),
            output_names=list(outputs),
            dynamic_axes={name: dict(named) for name, named in axes.items()},
            opset_version=OPSET,
            dynamo=False,
        )


@torch.no_grad()
def _compare(module: nn.Module, path: Path, probes: Sequence[Mapping[str, Tensor]], outputs: Sequence[str]) -> Parity:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    differences, values = [0.0], [0.0]
    for probe in probes:
        results = module(*probe.values())
        expected = (results,) if isinstance(results, Tensor) else tuple(results)
        found = session.run(list(outputs), {name: tensor.numpy() for name, tensor in probe.items()})
        for theirs, ours in zip(found, expected, strict=True):
            differences.append(float(np.abs(theirs - ours.numpy()).max()))
            values.append(float(ours.abs().max()))
    shapes = tuple(tuple(tuple(tensor.shape) for tensor in probe.values()) for probe in probes)
    return Parity(max(differences), max(values), shapes)
