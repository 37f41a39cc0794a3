"""Operators of exported graphs that TensorRT lacks: ONNX Runtime leaves those to CUDA, and copies around them.

`python -m shared.export.tensorrt_operators FOLDER` checks the graphs that `fovea export graphs` wrote; with `--write`
it records their operators, from which the page of the documentation is generated. Knows graphs; needs no TensorRT.
"""

import json
import pathlib
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

_SUPPORTED = (
    "Abs Acos Acosh Add And ArgMax ArgMin Asin Asinh Atan Atanh AveragePool BatchNormalization Cast Ceil Celu Clip "
    "Concat Constant ConstantOfShape Conv ConvTranspose Cos Cosh CumSum DepthToSpace DequantizeLinear Div Dropout "
    "Einsum Elu Equal Erf Exp Expand EyeLike Flatten Floor GRU Gather GatherElements GatherND Gemm "
    "GlobalAveragePool GlobalLpPool GlobalMaxPool Greater GreaterOrEqual HardSigmoid Identity If "
    "InstanceNormalization IsNaN LRN LSTM LayerNormalization LeakyRelu Less LessOrEqual Log LogSoftmax Loop "
    "LpNormalization LpPool MatMul Max MaxPool Mean Min Mul Neg Not Or PRelu Pad Pow QuantizeLinear RNN "
    "RandomUniform RandomUniformLike Range ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean "
    "ReduceMin ReduceProd ReduceSum ReduceSumSquare Relu Reshape Resize ReverseSequence Round Scan ScatterElements "
    "ScatterND Selu Shape Sigmoid Sign Sin Sinh Size Slice Softmax Softplus Softsign SpaceToDepth Split Sqrt "
    "Squeeze Sub Sum Tan Tanh ThresholdedRelu Tile TopK Transpose Trilu Unsqueeze Upsample Where Xor "
)
"""Operators with a form in TensorRT's parser of ONNX: those of version 8.4, LayerNormalization and Trilu. Others of
later versions that no graph of ours uses are left out."""

SUPPORTED = frozenset(_SUPPORTED.split())

RECORD = pathlib.Path(__file__).parent / "tensorrt_operators.json"

_NAME = re.compile(r"(.+)-[0-9a-f]{64}-(.+)")


def read_operators(graph: pathlib.Path) -> list[str]:
    """Return the kinds of operators of a graph, those of its branches included."""
    import onnx  # noqa: PLC0415  # large, and the page needs only the record

    return sorted({node.op_type for node in _nodes(onnx.load(graph, load_external_data=False).graph)})


def find_lacking(operators: Sequence[str]) -> list[str]:
    """Return those that TensorRT lacks."""
    return sorted(set(operators) - SUPPORTED)


def _nodes(graph: Any) -> Iterator[Any]:
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for branch in (attribute.g, *attribute.graphs):
                yield from _nodes(branch)


def render_page() -> str:
    """Return the table of the documentation."""
    return "\n".join(_lines(json.loads(RECORD.read_text("utf8")))) + "\n"


def _lines(record: Mapping[str, Sequence[str]]) -> Iterator[str]:
    yield "# Operators of the exported graphs, and TensorRT"
    yield ""
    yield "Generated from `shared/export/tensorrt_operators.json`. **Checked against a list, not run:** no TensorRT has"
    yield "built these graphs. `python -m shared.export.tensorrt_operators FOLDER --write` records the graphs that"
    yield "`fovea export graphs` wrote. An operator that TensorRT lacks runs on CUDA, with copies around it."
    yield ""
    yield "| graph | kinds of operators | TensorRT lacks |"
    yield "|---|---|---|"
    for name, operators in record.items():
        yield f"| {name} | {len(operators)} | {', '.join(find_lacking(operators)) or 'none'} |"
    used = sorted({one for operators in record.values() for one in operators})
    yield ""
    yield f"All {len(used)} kinds: {', '.join(used)}."


def main(arguments: Sequence[str]) -> int:
    """Check the graphs of a folder; 1 where TensorRT lacks an operator."""
    folder = pathlib.Path(next(one for one in arguments if not one.startswith("-")))
    record = {}
    for graph in sorted(folder.glob("*.onnx")):
        found = _NAME.fullmatch(graph.stem)
        name = graph.stem if found is None else f"{found[1]}, {found[2]}"
        record[name] = read_operators(graph)
        sys.stdout.write(f"{name}: {', '.join(find_lacking(record[name])) or 'TensorRT has all operators'}\n")
    if "--write" in arguments:
        rows = (f"  {json.dumps(name)}: {json.dumps(operators)}" for name, operators in record.items())
        RECORD.write_text("{\n" + ",\n".join(rows) + "\n}\n", "utf8")
    return int(any(find_lacking(operators) for operators in record.values()))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
