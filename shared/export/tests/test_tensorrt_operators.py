"""Operators that TensorRT lacks are found in graphs, in their branches too; the recorded graphs have none."""

import json

import pytest
from onnx import TensorProto, helper, save

from shared.export.tensorrt_operators import RECORD, find_lacking, main, read_operators


def branch(operator: str):
    out = helper.make_tensor_value_info("out", TensorProto.FLOAT, [1])
    return helper.make_graph([helper.make_node(operator, ["x"], ["out"])], operator, [], [out])


@pytest.fixture
def graph(tmp_path):
    facts = (("x", TensorProto.FLOAT, [1]), ("flag", TensorProto.BOOL, []), ("y", TensorProto.FLOAT, [1]))
    x, flag, out = (helper.make_tensor_value_info(*one) for one in facts)
    chosen = helper.make_node("If", ["flag"], ["y"], then_branch=branch("Relu"), else_branch=branch("Det"))
    path = tmp_path / f"net-{'0' * 64}-v1.onnx"
    save(helper.make_model(helper.make_graph([chosen], "g", [x, flag], [out])), path)
    return path


def test_operators_of_branches_are_found(graph, capsys):
    assert read_operators(graph) == ["Det", "If", "Relu"]
    assert find_lacking(["Relu", "Det", "Conv"]) == ["Det"]
    assert main([str(graph.parent)]) == 1
    assert capsys.readouterr().out == "net, v1: Det\n"


def test_tensorrt_has_all_operators_of_the_recorded_graphs():
    record = json.loads(RECORD.read_text("utf8"))
    assert len(record) >= 11
    assert {name: find_lacking(operators) for name, operators in record.items() if find_lacking(operators)} == {}
