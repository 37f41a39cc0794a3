"""The tensors of an ONNX graph under the names they had in the network it was exported from.

Torch's exporter keeps the names of most tensors. The weights of linear layers it transposes and renames; the names of
the nodes that use them still name the layer. Tensors that it computed anew (a convolution with its batch norm folded
in) belong to no layer any more and keep their made-up names, so that a comparison of keys finds them missing.
Knows ONNX files; knows no network.
"""

from pathlib import Path

import numpy as np
import onnx
import torch
from google.protobuf.message import DecodeError
from onnx import numpy_helper
from torch import Tensor

from fovea.errors import Malformed

FOLDED = (
    "An ONNX graph holds the tensors of its network only if nothing was folded: export it with "
    "`training=torch.onnx.TrainingMode.PRESERVE` and `do_constant_folding=False`, or send the checkpoint itself."
)


def read_initializers(file: Path) -> dict[str, Tensor]:
    """All stored tensors of a graph; nothing of the graph is run, and no other file is read.

    Raises:
        Malformed: It is not an ONNX file, or keeps its tensors in files next to it.
    """
    try:
        graph = onnx.load(file, load_external_data=False).graph
        stored = {each.name: each for each in graph.initializer}
        if any(each.data_location == onnx.TensorProto.EXTERNAL for each in stored.values()):
            raise Malformed(f"{file.name!r} keeps its tensors in other files.", hint="Save it as a single file.")
        arrays = {name: numpy_helper.to_array(each) for name, each in stored.items()}
        # Tensors with the same numbers are stored once; the others are said to be identical to them.
        alike = {node.output[0]: node.input[0] for node in graph.node if node.op_type == "Identity"}
        arrays |= {name: arrays[same] for name, same in alike.items() if same in arrays}
    except (DecodeError, ValueError, TypeError, OSError) as error:
        raise Malformed(f"{file.name!r} is not an ONNX file.") from error
    layers = _layers(graph)
    found = {name: array for name, array in arrays.items() if name not in layers}
    for name, layer in layers.items():
        if name in arrays and arrays[name].ndim == 2:
            found[f"{layer}.weight"] = arrays[name].T
    return {name: torch.from_numpy(np.array(array)) for name, array in found.items()}


def _layers(graph: onnx.GraphProto) -> dict[str, str]:
    """Renamed weight of a matrix product → its layer: node `/encoder/fc/MatMul` uses the weight of `encoder.fc`."""
    found: dict[str, str] = {}
    for node in graph.node:
        path = node.name.strip("/").split("/")
        if node.op_type == "MatMul" and len(path) > 1 and path[-1].startswith("MatMul"):
            found |= {name: ".".join(_whole(path[:-1])) for name in node.input if name.startswith("onnx::")}
    return found


def _whole(path: list[str]) -> list[str]:
    """Names of modules without what repeats their parent: `layers.0` inside `layers` is written `layers/layers.0`."""
    return [part for part, after in zip(path, [*path[1:], ""], strict=True) if not after.startswith(f"{part}.")]
