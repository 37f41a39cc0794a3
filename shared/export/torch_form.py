"""The torch side of exported forms: the network with its weights, and the graph that is traced from it.

Knows torch; the forms themselves (`artifacts`) do without.
"""

from pathlib import Path

import torch
from torch import Tensor, nn

from fovea.api.tensors import TensorSpec
from shared.export.artifacts import ExportedForms, Shapes
from shared.export.onnx_export import export_onnx
from shared.export.parity import Parity
from shared.registry import network


def build_network(forms: ExportedForms) -> nn.Module:
    """The torch network of a set of weights, in eval mode; `RuntimeError` if their manifest names another network."""
    spec = forms.weights.manifest.network
    net: nn.Module = network(spec.name, **spec.config)
    net.load_state_dict({key: torch.from_numpy(array) for key, array in forms.weights.arrays.items()})
    net = net.eval()
    return forms.prepare(net).eval() if forms.prepare else net


def export_graph(forms: ExportedForms, path: Path) -> Parity:
    """Export the graph of a set of weights, compared with its network; `Fault` if they differ."""
    net = forms.network()
    first, *others = forms.shapes or [_batch(forms, 1), _batch(forms, 3)]
    draw = torch.Generator().manual_seed(0)
    return export_onnx(
        net,
        path,
        _sample(forms, first, draw),
        [spec.name for spec in forms.outputs],
        call=forms.callable_of(net),
        dynamic=dict(map(_free_axes, (*forms.inputs, *forms.outputs))),
        probes=[_sample(forms, shapes, draw) for shapes in others],
    )


def _batch(forms: ExportedForms, count: int) -> Shapes:
    return {spec.name: (count, *spec.shape[1:]) for spec in forms.inputs}


def _sample(forms: ExportedForms, shapes: Shapes, draw: torch.Generator) -> dict[str, Tensor]:
    """Normal numbers: what a network computes from them compares as well as any picture. Integers: 0..3."""
    if forms.sample is not None:
        return {spec.name: forms.sample(shapes[spec.name]) for spec in forms.inputs}
    return {spec.name: _draw(spec, shapes[spec.name], draw) for spec in forms.inputs}


def _draw(spec: TensorSpec, shape: tuple[int, ...], draw: torch.Generator) -> Tensor:
    if spec.datatype == "INT64":
        return torch.randint(4, shape, generator=draw)
    return torch.randn(shape, generator=draw)


def _free_axes(spec: TensorSpec) -> tuple[str, dict[int, str]]:
    """Axes of any length by name; the batch axes of all tensors are one."""
    free = (axis for axis, length in enumerate(spec.shape) if length == -1)
    return spec.name, {axis: f"{spec.name}_{axis}" if axis else "n" for axis in free}
