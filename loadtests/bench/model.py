"""The small ONNX model that all contenders serve: four convolutions on 3×64×64, a third of a millisecond."""

from functools import cache

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

INPUT, OUTPUT = "image", "scores"
SHAPE = (3, 64, 64)
WIDTHS = ((3, 24, 2), (24, 56, 2), (56, 80, 1), (80, 64, 2))


def tiny_model() -> bytes:
    """The serialised graph; the batch axis is free. Weights come from a fixed seed."""
    rng = np.random.default_rng(0)
    nodes, weights, name = [], [], INPUT
    for i, (wide, out, stride) in enumerate(WIDTHS):
        kernel = (rng.standard_normal((out, wide, 3, 3)) / np.sqrt(9 * wide)).astype(np.float32)
        weights.append(numpy_helper.from_array(kernel, f"w{i}"))
        nodes.append(helper.make_node("Conv", [name, f"w{i}"], [f"c{i}"], strides=[stride, stride], pads=[1, 1, 1, 1]))
        nodes.append(helper.make_node("Relu", [f"c{i}"], [f"r{i}"]))
        name = f"r{i}"
    nodes.append(helper.make_node("GlobalAveragePool", [name], ["pooled"]))
    nodes.append(helper.make_node("Flatten", ["pooled"], [OUTPUT]))
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, ["n", *SHAPE])],
        [helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, ["n", WIDTHS[-1][1]])],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    onnx.checker.check_model(model)
    return model.SerializeToString()


@cache
def session() -> ort.InferenceSession:
    """ONNX Runtime on one thread without spinning: what every contender uses."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return ort.InferenceSession(tiny_model(), options, providers=["CPUExecutionProvider"])


def picture() -> np.ndarray:
    """One input, float32 [1, 3, 64, 64]."""
    return np.random.default_rng(1).random((1, *SHAPE), dtype=np.float32)
