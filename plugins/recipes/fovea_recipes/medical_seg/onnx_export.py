"""The ONNX form of the polyp networks: the served map alone, for any batch and any size that is a multiple of 32.

Knows the axes of the graph; a service fixes height and width of the one that it exports for itself. The exporter and
its comparison are `shared.export.onnx_export`.
"""

from pathlib import Path
from typing import cast

import torch
from torch import nn

from services.medical_seg.models.polyp_network import PolypNetwork
from services.medical_seg.segmenter import TENSOR_NAMES
from shared.export.onnx_export import Parity, export_onnx


def export_graph(network: nn.Module, path: Path) -> Parity:
    """Export `prediction` (map_2, or the sum of V2's foreground maps), compared with torch at two further sizes.

    Raises:
        Fault: The graph computes something else.
    """
    (given, wanted), draw = TENSOR_NAMES, torch.Generator().manual_seed(0)
    shapes = ((2, 3, 64, 96), (1, 3, 96, 64), (3, 3, 128, 128))
    example, *probes = ({given: torch.randn(shape, generator=draw)} for shape in shapes)
    axes = {given: {0: "n", 2: "h", 3: "w"}, wanted: {0: "n", 2: "h", 3: "w"}}
    call = cast("PolypNetwork", network.eval()).prediction
    return export_onnx(network, path, example, [wanted], call=call, dynamic=axes, probes=probes)
