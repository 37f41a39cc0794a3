"""A refusal is a sentence that names the tensor: JSON with its binary part, and protobuf."""

import json
import re
from typing import Any

import numpy as np
import pytest

from fovea.errors import Fault, Malformed, TooLarge
from shared.rpc import oip_json, oip_proto
from shared.rpc import open_inference_pb2 as pb
from shared.rpc.oip import InferAnswer, InferCall, build_answer, check_outputs
from shared.rpc.tests.oip_client import decode_json, decode_message, encode_json, encode_message

X = {"name": "x", "datatype": "FP32", "shape": [2]}
GOOD, RAW = {**X, "data": [1, 2]}, {**X, "parameters": {"binary_data_size": 8}}


def request(*inputs: Any, **more: Any) -> dict[str, Any]:
    return {"inputs": list(inputs), **more}


def asked(name: str, **parameters: Any) -> dict[str, Any]:
    return {"name": name, "parameters": parameters}


def decode(head: Any, raw: bytes | None = None, header_length: int | None = None) -> InferCall:
    text = head if isinstance(head, bytes) else json.dumps(head).encode()
    length = len(text) if raw is not None and header_length is None else header_length
    return oip_json.decode_request("m", "", text + (raw or b""), length)


BAD_JSON: dict[str, tuple[Any, bytes | None, str]] = {
    "no JSON": (b"\x89PNG", None, "not JSON"),
    "empty": (b"", None, "not JSON"),
    "cut off": (b'{"inputs": [', None, "not JSON"),
    "two documents": (b"{}{}", None, "not JSON"),
    "not UTF-8": (b'{"inputs": "\xff"}', None, "not JSON"),
    "lone surrogate": (b'{"id": "\\ud800", "inputs": []}', None, "not JSON"),
    "NaN": (b'{"inputs": [{"name": "x", "datatype": "FP32", "shape": [1], "data": [NaN]}]}', None, "not JSON"),
    "Infinity": (b'{"inputs": [{"name": "x", "shape": [1], "data": [-Infinity]}]}', None, "not JSON"),
    "deep array": (b"[" * 100_000, None, "not JSON"),
    "deep object": (b'{"a":' * 100_000, None, "not JSON"),
    "deep data": (b'{"inputs": [{"name": "x", "data": ' + b"[" * 100_000, None, "not JSON"),
    "a list": ([], None, "not an inference message"),
    "a number": (1, None, "not an inference message"),
    "no inputs": ({}, None, "inputs"),
    "empty inputs": (request(), None, "inputs"),
    "inputs an object": ({"inputs": {}}, None, "inputs"),
    "input a string": (request("x"), None, r"inputs\[0\]"),
    "no name": (request({"datatype": "FP32", "shape": [1], "data": [1]}), None, r"inputs\[0\]\.name"),
    "empty name": (request({**X, "name": "", "data": [1, 2]}), None, "no name"),
    "no shape": (request({"name": "x", "datatype": "FP32", "data": [1]}), None, r"inputs\[0\]\.shape \(tensor 'x'\)"),
    "shape of text": (request({**X, "shape": ["2"], "data": [1, 2]}), None, r"inputs\[0\]\.shape\[0\] \(tensor 'x'\)"),
    "shape of true": (request({**X, "shape": [True], "data": [1]}), None, r"shape\[0\] \(tensor 'x'\)"),
    "shape of floats": (request({**X, "shape": [2.0], "data": [1, 2]}), None, r"shape\[0\] \(tensor 'x'\)"),
    "a million axes": (request({**X, "shape": [1] * 10**6, "data": [1]}), None, r"shape \(tensor 'x'\)"),
    "a million bad axes": (request({**X, "shape": ["1"] * 10**6, "data": [1]}), None, r"\(tensor 'x'\)"),
    "negative shape": (request({**X, "shape": [-2], "data": [1, 2]}), None, "'x'.*axes are"),
    "overflowing shape": (request({**X, "shape": [2**40, 2**40], "data": []}), None, "'x'.*axes are"),
    "huge shape": (request({**X, "shape": [2**31 - 1] * 3, "data": []}), None, "'x'.*overflows"),
    "enormous shape": (request({**X, "shape": [10**4000], "data": []}), None, "'x'.*axes are"),
    "datatype of nobody": (request({**X, "datatype": "FP8", "data": [1, 2]}), None, "'x'.*unknown datatype"),
    "no data": (request(X), None, "'x' has neither"),
    "data null": (request({**X, "data": None}), None, "'x' has neither"),
    "data a number": (request({**X, "data": 1}), None, r"data \(tensor 'x'\)"),
    "too few values": (request({**X, "data": [1]}), None, "'x'.*takes 2 values, but 1"),
    "badly nested": (request({**X, "shape": [2, 2], "data": [[1, 2], [3]]}), None, "'x'.*nested"),
    "nested and flat": (request({**X, "shape": [2, 1], "data": [[1], 2]}), None, "'x'.*nested"),
    "nested too deep": (request({**X, "data": [[1], [2]]}), None, "'x'"),
    "same name twice": (request(GOOD, GOOD), None, "'x' comes twice"),
    "same output twice": (request(GOOD, outputs=[{"name": "y"}, {"name": "y"}]), None, "'y' comes twice"),
    "size without header": (request(RAW), None, "'x'.*Inference-Header-Content-Length is missing"),
    "data and size": (request({**RAW, "data": [1, 2]}), bytes(8), "'x' has both"),
    "negative size": (request({**X, "parameters": {"binary_data_size": -1}}), bytes(8), "'x'.*not a number of bytes"),
    "size of text": (request({**X, "parameters": {"binary_data_size": "8"}}), bytes(8), "'x'.*not a number of bytes"),
    "size of true": (request({**X, "parameters": {"binary_data_size": True}}), bytes(1), "'x'.*not a number of bytes"),
    "size of a float": (request({**X, "parameters": {"binary_data_size": 8.0}}), bytes(8), "'x'.*not a number"),
    "size past the end": (request({**X, "parameters": {"binary_data_size": 9}}), bytes(8), "'x' claims 9 bytes, but 8"),
    "second size past the end": (request(RAW, {**RAW, "name": "z"}), bytes(15), "'z' claims 8 bytes, but 7"),
    "bytes left over": (request(RAW), bytes(9), "1 bytes follow"),
    "size against shape": (request({**RAW, "shape": [3]}), bytes(8), "'x'.*takes 12 bytes, but 8"),
    "BYTES overrun": (request({**RAW, "datatype": "BYTES", "shape": [1]}), b"\xff\0\0\0abcd", "'x' of BYTES"),
    "shared memory": (request({**X, "parameters": {"shared_memory_region": "r"}}), None, "'x'.*shared memory"),
    "classification": (request(GOOD, outputs=[asked("y", classification=3)]), None, "'y'.*classification"),
    "sequence": (request(GOOD, parameters={"sequence_id": 7}), None, "Sequences"),
    "binary_data of text": (request(GOOD, outputs=[asked("y", binary_data="yes")]), None, "'binary_data' of 'y'"),
    "binary_data_output of 1": (request(GOOD, parameters={"binary_data_output": 1}), None, "'binary_data_output'"),
    "id a number": (request(GOOD, id=7), None, "id: "),
}


@pytest.mark.parametrize(("head", "raw", "told"), BAD_JSON.values(), ids=BAD_JSON.keys())
def test_a_bad_body_is_malformed_and_says_where(head, raw, told):
    with pytest.raises(Malformed) as caught:
        decode(head, raw)
    assert re.search(told, caught.value.detail), caught.value.detail
    if "'x'" in told:
        assert caught.value.field == "x"


@pytest.mark.parametrize("length", [-1, 10**6])
def test_a_header_longer_than_the_body_is_malformed(length):
    with pytest.raises(Malformed, match="inference-header-content-length"):
        decode(request(RAW), bytes(8), length)


def test_more_json_than_is_read_is_too_large():
    with pytest.raises(TooLarge, match="bytes of JSON") as caught:
        decode(b" " * (32 * 2**20 + 1))
    assert "binary" in str(caught.value.hint)


def test_a_byte_order_mark_before_the_json_is_ignored():
    text = json.dumps(request({**X, "data": [1, 2]})).encode()
    assert decode(b"\xef\xbb\xbf" + text).feeds["x"].tolist() == [1, 2]


def test_nested_data_is_read_as_its_shape_says_and_json_and_binary_inputs_mix():
    call = decode(request({**X, "shape": [2, 1, 2], "data": [[[1, 2]], [[3, 4]]]}))
    assert call.feeds["x"].tolist() == [[[1, 2]], [[3, 4]]]
    head = request({**X, "name": "a", "data": [1, 2]}, RAW, {**X, "name": "b", "data": [3, 4]}, {**RAW, "name": "z"})
    call = decode(head, np.arange(4, dtype="<f4").tobytes())
    assert {name: array.tolist() for name, array in call.feeds.items()} == {
        "a": [1, 2], "x": [0, 1], "b": [3, 4], "z": [2, 3],
    }  # fmt: skip


def test_outputs_travel_as_they_are_asked_for_and_all_as_json_when_none_is_named():
    outputs = [asked("a", binary_data=False), {"name": "b"}]
    call = decode(request(GOOD, outputs=outputs, parameters={"binary_data_output": True}))
    results = {"b": np.float32([1]), "a": np.float32([2]), "unwanted": np.float32([3])}
    body = oip_json.encode_answer(build_answer(call, results, "1"), call)
    head = json.loads(body.join()[: body.header_length])
    forms = [(o["name"], "data" in o, "parameters" in o) for o in head["outputs"]]
    assert forms == [("a", True, False), ("b", False, True)]
    assert list(decode_json(body)) == ["a", "b"]
    call = decode(request(GOOD))
    body = oip_json.encode_answer(build_answer(call, {"a": np.float32([2]), "b": np.array([b"t"], object)}, "1"), call)
    assert body.header_length is None
    assert [o["data"] for o in json.loads(body.join())["outputs"]] == [[2.0], ["t"]]


def test_an_unknown_output_is_refused_and_one_that_the_model_forgets_is_our_fault():
    call = InferCall("m", {}, requested={"heat": None})
    with pytest.raises(Malformed, match="no output 'heat'") as caught:
        check_outputs(call, ["mask"])
    assert "'mask'" in str(caught.value.hint)
    with pytest.raises(Fault, match="'heat'"):
        build_answer(InferCall("m", {}, requested={"heat": None}), {"mask": np.zeros(1)}, "1")


@pytest.mark.parametrize(
    ("timeout", "seconds"), [(250_000, 0.25), (0, None), ("9", None), (True, None), (10**400, 2**53 / 1e6)]
)
def test_timeout_is_in_microseconds(timeout, seconds):
    assert InferCall("m", {}, parameters={"timeout": timeout}).timeout_s == seconds


def test_an_answer_keeps_nan_for_the_client():
    call = InferCall("m", {}, binary=True)
    body = oip_json.encode_answer(InferAnswer("m", "1", {"y": np.float32([np.nan])}), call)
    assert np.isnan(decode_json(body)["y"]).all()


def message(raw: list[bytes] | None = None, **tensor: Any) -> pb.ModelInferRequest:
    first = {"name": "x", "datatype": "FP32", "shape": [2], **tensor}
    return pb.ModelInferRequest(model_name="m", inputs=[first], raw_input_contents=raw or [])


def contents(**values: Any) -> pb.InferTensorContents:
    return pb.InferTensorContents(**values)


REGION = pb.InferParameter(string_param="r")
BAD_MESSAGES = {
    "nothing": (pb.ModelInferRequest(), "no inputs"),
    "no contents": (message(), "'x'.*takes 2 values, but 0"),
    "two raw for one input": (message([bytes(8), bytes(8)]), "2 raw contents came for 1"),
    "raw and typed": (message([bytes(8)], contents=contents(fp32_contents=[1, 2])), "'x' has both"),
    "raw too short": (message([bytes(7)]), "'x'.*takes 8 bytes, but 7"),
    "negative shape": (message([bytes(8)], shape=[-2]), "'x'.*axes are"),
    "overflowing shape": (message([b""], shape=[2**62, 2**62]), "'x'.*axes are"),
    "negative typed shape": (message(shape=[-1], datatype="FP8"), "'x'.*unknown datatype"),
    "unknown datatype": (message([bytes(8)], datatype="FP8"), "'x'.*unknown datatype"),
    "typed half": (message(datatype="FP16", contents=contents(fp32_contents=[1, 2])), "'x'.*no typed contents"),
    "typed elsewhere": (message(contents=contents(fp64_contents=[1, 2])), "'x'.*fp32_contents, but fp64_contents"),
    "typed twice": (message(contents=contents(fp32_contents=[1, 2], int_contents=[1])), "'x'.*int_contents came"),
    "typed out of range": (message(datatype="INT8", contents=contents(int_contents=[1, 200])), "'x'.*out of range"),
    "shared memory": (message(parameters={"shared_memory_region": REGION}), "'x'.*shared memory"),
    "no name": (message([bytes(8)], name=""), "no name"),
}


@pytest.mark.parametrize(("bad", "told"), BAD_MESSAGES.values(), ids=BAD_MESSAGES.keys())
def test_a_bad_message_is_malformed_and_says_where(bad, told):
    with pytest.raises(Malformed) as caught:
        oip_proto.decode_request(bad)
    assert re.search(told, caught.value.detail), caught.value.detail


@pytest.mark.parametrize(
    ("datatype", "field", "values"),
    [
        ("BOOL", "bool_contents", [True, False]), ("INT8", "int_contents", [-1, 2]),
        ("INT64", "int64_contents", [-1, 2**62]), ("UINT16", "uint_contents", [1, 65535]),
        ("UINT64", "uint64_contents", [1, 2**64 - 1]), ("FP32", "fp32_contents", [0.5, -2.0]),
        ("FP64", "fp64_contents", [0.1, -2.0]), ("BYTES", "bytes_contents", [b"\xff", b""]),
    ],
)  # fmt: skip
def test_typed_contents_are_read_and_answered_in_kind(datatype, field, values):
    call = oip_proto.decode_request(message(datatype=datatype, contents=contents(**{field: values})))
    told = oip_proto.encode_answer(build_answer(call, {"y": call.feeds["x"]}, "1"), call)
    assert call.feeds["x"].tolist() == values
    assert not told.raw_output_contents
    assert list(getattr(told.outputs[0].contents, field)) == values
    assert decode_message(told)["y"].tolist() == values


def test_one_output_without_typed_form_makes_the_answer_raw():
    call = oip_proto.decode_request(message(contents=contents(fp32_contents=[1, 2])))
    told = oip_proto.encode_answer(build_answer(call, {"a": np.float16([1]), "b": np.float32([2])}, "1"), call)
    assert [len(raw) for raw in told.raw_output_contents] == [2, 4]
    assert {name: array.tolist() for name, array in decode_message(told).items()} == {"a": [1], "b": [2]}


@pytest.mark.parametrize("dtype", [object, np.str_])
def test_typed_answers_carry_text_as_utf8(dtype):
    call = oip_proto.decode_request(message(contents=contents(fp32_contents=[1, 2])))
    told = oip_proto.encode_answer(build_answer(call, {"y": np.array([["pølyp", ""]], dtype)}, "1"), call)
    assert list(told.outputs[0].contents.bytes_contents) == ["pølyp".encode(), b""]


def test_parameters_of_every_kind_pass_through_messages():
    given = {"flag": True, "count": -3, "share": 0.5, "text": "ä"}
    call = InferCall("m", {"x": np.float32([1])}, parameters=given)
    assert oip_proto.decode_request(encode_message(call)).parameters == given


def test_a_request_is_decoded_with_its_parameters():
    feeds = {"x": np.float32([1, 2]), "y": np.array([b"t"], object)}
    parameters = {"timeout": 9, "tag": "z"}
    call = InferCall("m", feeds, id="7", requested={"a": True, "b": None}, binary=True, parameters=parameters)
    body = encode_json(call)
    back = oip_json.decode_request("m", "", body.join(), body.header_length)
    assert (back.id, back.binary, dict(back.requested)) == ("7", True, {"a": True, "b": True})
    assert back.parameters == parameters | {"binary_data_output": True}
    assert {name: array.tolist() for name, array in back.feeds.items()} == {"x": [1, 2], "y": [b"t"]}


def test_outputs_that_json_can_not_carry_are_named():
    call = InferCall("m", {}, requested={"y": False})
    with pytest.raises(Malformed, match=r"^Tensor 'y'") as caught:
        oip_json.encode_answer(InferAnswer("m", "1", {"y": np.float32([np.nan])}), call)
    assert caught.value.field == "y"


@pytest.mark.parametrize(
    ("head", "where", "field"),
    [
        ({"inputs": {}}, "inputs: ", "inputs"),
        (request("x"), "inputs[0]: ", "inputs[0]"),
        (request({"name": "x", "datatype": "FP32"}), "inputs[0].shape (tensor 'x'): ", "x"),
        ([], "top: ", None),
        (request(GOOD, outputs=[{}]), "outputs[0].name: ", "outputs[0].name"),
        (request({"name": "n" * 513, "datatype": "FP32"}), "inputs[0].name: ", "inputs[0].name"),
        (request({"name": "n" * 512, "datatype": "FP32"}), f"inputs[0].shape (tensor {'n' * 512!r}): ", "n" * 512),
    ],
)
def test_an_error_of_the_json_says_where_it_is(head, where, field):
    with pytest.raises(Malformed) as caught:
        decode(head)
    assert caught.value.detail.startswith(f"The JSON of the body is not an inference message: {where}")
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("head", "field", "hint"),
    [
        (request(GOOD, outputs=[asked("y", classification=3)]), "y", ".*model's own route"),
        (request({**X, "parameters": {"shared_memory_region": "r"}}), "x", r"Send the bytes with the request\.$"),
        (request(GOOD, parameters={"sequence_id": 7}), "sequence_id", ""),
        (b"{", None, r"Binary tensors need the header Inference-Header-Content-Length\.$"),
    ],
)
def test_what_is_not_offered_is_named_with_a_way_out(head, field, hint):
    with pytest.raises(Malformed) as caught:
        decode(head)
    assert caught.value.field == field
    assert re.match(hint, str(caught.value.hint))
