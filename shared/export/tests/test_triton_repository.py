"""Model repositories hold what their `config.pbtxt` says, by Triton's own schema; operators that TensorRT lacks."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from google.protobuf import text_format
from onnx import TensorProto, helper, save
from torch import Tensor, nn
from tritonclient.grpc import model_config_pb2 as schema

from fovea.api.tensors import TensorSpec
from fovea.errors import InvalidOption
from shared.export.artifacts import ExportedForms
from shared.export.tensorrt_operators import RECORD, find_lacking, main, read_operators
from shared.export.triton_repository import TritonOptions, _datatype, write_model
from shared.registry.weights import Manifest, NetworkSpec, Weights
from shared.rpc.tensors import DTYPES

pytestmark = pytest.mark.usefixtures("fresh_exports")

LABELS = ("crack", "pothole", "patch")


class Net(nn.Module):
    """Three scores of a picture, one number, and the picture halved."""

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return image.mean((2, 3)), image.amax((1, 2, 3)), image[:, :, ::2, ::2]


class Forms(ExportedForms):
    def network(self) -> nn.Module:
        return Net().eval()


def forms(cache: Path, sides: tuple[int, int] = (8, 8)) -> ExportedForms:
    manifest = Manifest(name="net", origin="trained", network=NetworkSpec(name="net"), sha256="ab" * 32)
    image = TensorSpec(name="image", datatype="FP32", shape=(-1, 3, *sides))
    half = tuple(side // 2 if side > 0 else -1 for side in sides)
    named = {"scores": (-1, 3), "peak": (-1,), "half": (-1, 3, *half)}
    outputs = tuple(TensorSpec(name=name, datatype="FP32", shape=shape) for name, shape in named.items())
    shapes = [{"image": (1, 3, 16, 8)}, {"image": (2, 3, 8, 24)}] if sides[0] < 0 else []
    return Forms(Weights({}, manifest), cache, (image,), outputs, tag="v1", shapes=shapes)


def parse(place: Path) -> Any:
    return text_format.Parse((place / "config.pbtxt").read_text("utf-8"), schema.ModelConfig())


@pytest.mark.parametrize("sides", [(8, 8), (-1, -1)])
def test_a_repository_says_what_its_graph_takes_and_gives_and_has_its_labels_and_a_warm_up(tmp_path, sides):
    place = write_model(tmp_path / "repository", "net", forms(tmp_path, sides), LABELS, TritonOptions(max_batch=4))
    written = {str(file.relative_to(place)) for file in place.rglob("*") if file.is_file()}
    assert written == {"config.pbtxt", "labels.txt", "1/model.onnx"}
    config, session = parse(place), onnxruntime.InferenceSession(place / "1" / "model.onnx")
    assert (config.name, config.backend, config.max_batch_size) == (place.name, "onnxruntime", 4)
    for stated, found in ((config.input, session.get_inputs()), (config.output, session.get_outputs())):
        assert [each.name for each in stated] == [each.name for each in found]
        for each, real in zip(stated, found, strict=True):
            dims = each.reshape.shape if each.HasField("reshape") else each.dims
            assert [-1 if isinstance(side, str) else side for side in real.shape[1:]] == list(dims)
            assert (schema.DataType.Name(each.data_type), real.type) == ("TYPE_FP32", "tensor(float)")
    (warmup,) = config.model_warmup
    feeds = {
        name: np.zeros((warmup.batch_size, *given.dims), DTYPES[schema.DataType.Name(given.data_type)[5:]])
        for name, given in warmup.inputs.items()
    }
    assert feeds["image"].shape == ((1, 3, 16, 8) if sides[0] < 0 else (1, 3, *sides))
    session.run(None, feeds)
    assert (place / "labels.txt").read_text().splitlines() == list(LABELS)
    assert [each.label_filename for each in config.output] == ["labels.txt", "", ""]


def test_options_reach_the_configuration(tmp_path):
    options = TritonOptions(max_batch=16, delay_us=500, instances=2, has_gpu=False, has_tensorrt=True)
    config = parse(write_model(tmp_path / "r", "net", forms(tmp_path), (), options))
    assert list(config.dynamic_batching.preferred_batch_size) == [16]
    assert config.dynamic_batching.max_queue_delay_microseconds == 500
    (group,) = config.instance_group
    assert (group.count, group.kind) == (2, schema.ModelInstanceGroup.KIND_CPU)
    (accelerator,) = config.optimization.execution_accelerators.gpu_execution_accelerator
    assert (accelerator.name, dict(accelerator.parameters)) == ("tensorrt", {"precision_mode": "FP16"})
    assert config.parameters["weights_sha256"].string_value == "ab" * 32


def test_every_datatype_is_one_of_tritons_and_a_name_that_leaves_the_repository_refused(tmp_path):
    names = [_datatype(TensorSpec(name="x", datatype=name, shape=(1,))) for name in DTYPES]
    assert set(names) <= set(schema.DataType.keys())
    with pytest.raises(InvalidOption, match="can't be the name"):
        write_model(tmp_path, "../net", forms(tmp_path), (), TritonOptions())


def branch(operator: str):
    out = helper.make_tensor_value_info("out", TensorProto.FLOAT, [1])
    return helper.make_graph([helper.make_node(operator, ["x"], ["out"])], operator, [], [out])


def test_operators_of_branches_are_found_and_tensorrt_has_all_of_the_recorded_graphs(tmp_path, capsys):
    facts = (("x", TensorProto.FLOAT, [1]), ("flag", TensorProto.BOOL, []), ("y", TensorProto.FLOAT, [1]))
    x, flag, out = (helper.make_tensor_value_info(*one) for one in facts)
    chosen = helper.make_node("If", ["flag"], ["y"], then_branch=branch("Relu"), else_branch=branch("Det"))
    path = tmp_path / f"net-{'0' * 64}-v1.onnx"
    save(helper.make_model(helper.make_graph([chosen], "g", [x, flag], [out])), path)
    assert read_operators(path) == ["Det", "If", "Relu"]
    assert find_lacking(["Relu", "Det", "Conv"]) == ["Det"]
    assert main([str(tmp_path)]) == 1
    assert capsys.readouterr().out == "net, v1: Det\n"
    record = json.loads(RECORD.read_text("utf8"))
    assert len(record) >= 11
    assert {name: find_lacking(operators) for name, operators in record.items() if find_lacking(operators)} == {}
