"""Small ONNX graphs, made in memory, for the engines' tests."""

from collections.abc import Sequence

from onnx import TensorProto, helper

NUMBERS = {
    "BOOL": TensorProto.BOOL, "UINT8": TensorProto.UINT8, "UINT16": TensorProto.UINT16,
    "UINT32": TensorProto.UINT32, "UINT64": TensorProto.UINT64, "INT8": TensorProto.INT8,
    "INT16": TensorProto.INT16, "INT32": TensorProto.INT32, "INT64": TensorProto.INT64, "FP16": TensorProto.FLOAT16,
    "FP32": TensorProto.FLOAT, "FP64": TensorProto.DOUBLE, "BF16": TensorProto.BFLOAT16,
    "BYTES": TensorProto.STRING,
}  # fmt: skip
"""Open Inference datatype → ONNX's number of it."""


def graph(nodes: Sequence[tuple[str, Sequence[str], Sequence[str]]], inputs: dict, outputs: dict) -> bytes:
    """A serialised graph: nodes as (operator, inputs, outputs), tensors as name → (datatype, shape)."""
    values = [
        [helper.make_tensor_value_info(name, NUMBERS[kind], shape) for name, (kind, shape) in side.items()]
        for side in (inputs, outputs)
    ]
    body = helper.make_graph([helper.make_node(*node) for node in nodes], "g", *values)
    model = helper.make_model(body, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 9
    return model.SerializeToString()


def identity(datatype: str) -> bytes:
    return graph([("Identity", ["x"], ["y"])], {"x": (datatype, ["n", 3])}, {"y": (datatype, ["n", 3])})


def adder() -> bytes:
    pair = {"a": ("FP32", ["n", "w"]), "b": ("FP32", ["n", "v"])}
    return graph([("Add", ["a", "b"], ["sum"])], pair, {"sum": ("FP32", None)})
