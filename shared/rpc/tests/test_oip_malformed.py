"""JSON with its binary part, protobuf and single tensors: round trips, views, and refusals that name the tensor."""

import json
import re
from typing import Any

import hypothesis.extra.numpy as hnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fovea.errors import Fault, Malformed, TooLarge
from shared.rpc import oip_json, oip_proto, tensors
from shared.rpc import open_inference_pb2 as pb
from shared.rpc.oip import InferAnswer, InferCall, build_answer, check_outputs
from shared.rpc.oip_json import align
from shared.rpc.tests.oip_client import decode_json, decode_message, encode_json, encode_message

X = {"name": "x", "datatype": "FP32", "shape": [2]}
GOOD, RAW = {**X, "data": [1, 2]}, {**X, "parameters": {"binary_data_size": 8}}


def request(*inputs: Any, **more: Any) -> dict[str, Any]:
    return {"inputs": list(inputs), **more}


def at(place: str) -> str:
    """Name where a value stands that doesn't belong in a message, as field and in words."""
    return rf"^{place}: .*message: {place}: "


def asked(name: str, **parameters: Any) -> dict[str, Any]:
    return {"name": name, "parameters": parameters}


def decode(head: Any, raw: bytes | None = None, header_length: int | None = None) -> InferCall:
    text = head if isinstance(head, bytes) else json.dumps(head).encode()
    length = len(text) if raw is not None and header_length is None else header_length
    return oip_json.decode_request("m", "", text + (raw or b""), length)


BINARY = r"Binary tensors need the header Inference-Header-Content-Length\."
SHARED, CLASSES = "shared memory.*Send the bytes with the request", "classification.*model's own route"
NO_SHAPE = r"inputs\[0\]\.shape \(tensor 'x'\)"
BAD_JSON: dict[str, tuple[Any, bytes | None, str]] = {
    "no JSON": (b"\x89PNG", None, "not JSON"),
    "empty": (b"", None, "not JSON"),
    "cut off": (b'{"inputs": [', None, rf"^None: .*not JSON.*{BINARY}$"),
    "two documents": (b"{}{}", None, "not JSON"),
    "not UTF-8": (b'{"inputs": "\xff"}', None, "not JSON"),
    "lone surrogate": (b'{"id": "\\ud800", "inputs": []}', None, "not JSON"),
    "NaN": (b'{"inputs": [{"name": "x", "datatype": "FP32", "shape": [1], "data": [NaN]}]}', None, "not JSON"),
    "Infinity": (b'{"inputs": [{"name": "x", "shape": [1], "data": [-Infinity]}]}', None, "not JSON"),
    "deep array": (b"[" * 100_000, None, "not JSON"),
    "deep object": (b'{"a":' * 100_000, None, "not JSON"),
    "deep data": (b'{"inputs": [{"name": "x", "data": ' + b"[" * 100_000, None, "not JSON"),
    "a list": ([], None, r"^None: .*message: top: "),
    "a number": (1, None, "not an inference message"),
    "no inputs": ({}, None, "inputs"),
    "empty inputs": (request(), None, "inputs"),
    "inputs an object": ({"inputs": {}}, None, at("inputs")),
    "input a string": (request("x"), None, at(r"inputs\[0\]")),
    "no name": (request({"datatype": "FP32", "shape": [1], "data": [1]}), None, r"inputs\[0\]\.name"),
    "empty name": (request({**X, "name": "", "data": [1, 2]}), None, "no name"),
    "no shape": (request({"name": "x", "datatype": "FP32", "data": [1]}), None, rf"^x: .*message: {NO_SHAPE}: "),
    "shape of text": (request({**X, "shape": ["2"], "data": [1, 2]}), None, r"inputs\[0\]\.shape\[0\] \(tensor 'x'\)"),
    "shape of true": (request({**X, "shape": [True], "data": [1]}), None, r"shape\[0\] \(tensor 'x'\)"),
    "shape of floats": (request({**X, "shape": [2.0], "data": [1, 2]}), None, r"shape\[0\] \(tensor 'x'\)"),
    "a million axes": (request({**X, "shape": [1] * 10**6, "data": [1]}), None, r"shape \(tensor 'x'\)"),
    "a million bad axes": (request({**X, "shape": ["1"] * 10**6, "data": [1]}), None, r"\(tensor 'x'\)"),
    "33 axes": (request({**X, "shape": [1] * 33, "data": [1]}), None, "'x' has 33 axes; at most 32"),
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
    "shared memory": (request({**X, "parameters": {"shared_memory_region": "r"}}), None, rf"^x: .*'x'.*{SHARED}\.$"),
    "classification": (request(GOOD, outputs=[asked("y", classification=3)]), None, f"^y: .*'y'.*{CLASSES}"),
    "sequence": (request(GOOD, parameters={"sequence_id": 7}), None, "^sequence_id: .*Sequences"),
    "binary_data of text": (request(GOOD, outputs=[asked("y", binary_data="yes")]), None, "^y: .*'binary_data' of 'y'"),
    "binary_data_output of 1": (request(GOOD, parameters={"binary_data_output": 1}), None, "^binary_data_output: "),
    "text among numbers": (request({**X, "data": [1, "2"]}), None, "'x' of FP32 holds a value of type str"),
    "id a number": (request(GOOD, id=7), None, "id: "),
    "output without a name": (request(GOOD, outputs=[{}]), None, at(r"outputs\[0\]\.name")),
    "long name": (request({**GOOD, "name": "n" * 513}), None, at(r"inputs\[0\]\.name")),
    "longest name": (request({**X, "name": "n" * 512}), None, "^n{512}: .*'n{512}' has neither"),
}
"""Head, binary part, and the error: `field: detail hint`."""


@pytest.mark.parametrize(("head", "raw", "told"), BAD_JSON.values(), ids=BAD_JSON.keys())
def test_a_bad_body_is_malformed_and_says_where(head, raw, told):
    with pytest.raises(Malformed) as caught:
        decode(head, raw)
    said = f"{caught.value.field}: {caught.value.detail} {caught.value.hint}"
    assert re.search(told, said), said
    if "'x'" in told:
        assert caught.value.field == "x"


def test_a_byte_order_mark_is_ignored_a_header_longer_than_the_body_malformed_and_too_much_json_too_large():
    for length in (-1, 10**6):
        with pytest.raises(Malformed, match="inference-header-content-length"):
            decode(request(RAW), bytes(8), length)
    with pytest.raises(TooLarge, match="bytes of JSON", check=lambda e: "binary" in str(e.hint)):
        decode(b" " * (32 * 2**20 + 1))
    text = json.dumps(request({**X, "data": [1, 2]})).encode()
    assert decode(b"\xef\xbb\xbf" + text).feeds["x"].tolist() == [1, 2]


def test_nested_data_is_read_as_its_shape_says_and_json_and_binary_inputs_mix():
    call = decode(request({**X, "shape": [2, 1, 2], "data": [[[1, 2]], [[3, 4]]]}))
    assert call.feeds["x"].tolist() == [[[1, 2]], [[3, 4]]]
    assert decode(request({**X, "shape": [1] * 32, "data": [7]})).feeds["x"].shape == (1,) * 32
    head = request({**X, "name": "a", "data": [1, 2]}, RAW, {**X, "name": "b", "data": [3, 4]}, {**RAW, "name": "z"})
    call = decode(head, np.arange(4, dtype="<f4").tobytes())
    found = {name: array.tolist() for name, array in call.feeds.items()}
    assert found == {"a": [1, 2], "x": [0, 1], "b": [3, 4], "z": [2, 3]}


def test_outputs_travel_as_they_are_asked_for_and_all_as_json_when_none_is_named():
    outputs = [asked("a", binary_data=False), {"name": "b"}]
    call = decode(request(GOOD, outputs=outputs, parameters={"binary_data_output": True}))
    results = {"b": np.float32([1]), "a": np.float32([2]), "unwanted": np.float32([3])}
    body = oip_json.encode_answer(build_answer(call, results, "1"), call)
    head = json.loads(body.join()[: body.header_length])
    forms = [(o["name"], "data" in o, "parameters" in o) for o in head["outputs"]]
    assert (forms, list(decode_json(body))) == ([("a", True, False), ("b", False, True)], ["a", "b"])
    call = decode(request(GOOD | {"parameters": None}, id=None, parameters=None, outputs=None))
    body = oip_json.encode_answer(build_answer(call, {"a": np.float32([2]), "b": np.array([b"t"], object)}, "1"), call)
    assert (body.header_length, [o["data"] for o in json.loads(body.join())["outputs"]]) == (None, [[2.0], ["t"]])


def test_an_unknown_output_is_refused_and_one_that_the_model_forgets_is_our_fault():
    call = InferCall("m", {}, requested={"heat": None})
    with pytest.raises(Malformed, match="no output 'heat'", check=lambda e: "'mask'" in str(e.hint)):
        check_outputs(call, ["mask"])
    with pytest.raises(Fault, match="'heat'"):
        build_answer(call, {"mask": np.zeros(1)}, "1")


def test_nan_stays_in_an_answer_of_bytes_and_is_named_where_json_can_not_carry_it():
    call = InferCall("m", {}, binary=True)
    body = oip_json.encode_answer(InferAnswer("m", "1", {"y": np.float32([np.nan])}), call)
    assert np.isnan(decode_json(body)["y"]).all()
    call = InferCall("m", {}, requested={"y": False})
    with pytest.raises(Malformed, match=r"^Tensor 'y'", check=lambda e: e.field == "y"):
        oip_json.encode_answer(InferAnswer("m", "1", {"y": np.float32([np.nan])}), call)


def message(raw: list[bytes] | None = None, **tensor: Any) -> pb.ModelInferRequest:
    first = {"name": "x", "datatype": "FP32", "shape": [2], **tensor}
    return pb.ModelInferRequest(model_name="m", inputs=[first], raw_input_contents=raw or [])


CONTENTS = pb.InferTensorContents
REGION = pb.InferParameter(string_param="r")
BEST = {"name": "y", "parameters": {"classification": pb.InferParameter(int64_param=3)}}
BAD_MESSAGES = {
    "nothing": (pb.ModelInferRequest(), "no inputs"),
    "no contents": (message(), "'x'.*takes 2 values, but 0"),
    "two raw for one input": (message([bytes(8), bytes(8)]), "2 raw contents came for 1"),
    "raw and typed": (message([bytes(8)], contents=CONTENTS(fp32_contents=[1, 2])), "'x' has both"),
    "raw too short": (message([bytes(7)]), "'x'.*takes 8 bytes, but 7"),
    "negative shape": (message([bytes(8)], shape=[-2]), "'x'.*axes are"),
    "overflowing shape": (message([b""], shape=[2**62, 2**62]), "'x'.*axes are"),
    "negative typed shape": (message(shape=[-1], datatype="FP8"), "'x'.*unknown datatype"),
    "unknown datatype": (message([bytes(8)], datatype="FP8"), "'x'.*unknown datatype"),
    "typed half": (message(datatype="FP16", contents=CONTENTS(fp32_contents=[1, 2])), "'x'.*no typed contents"),
    "typed elsewhere": (message(contents=CONTENTS(fp64_contents=[1, 2])), "'x'.*fp32_contents, but fp64_contents"),
    "typed twice": (message(contents=CONTENTS(fp32_contents=[1, 2], int_contents=[1])), "'x'.*int_contents came"),
    "typed out of range": (message(datatype="INT8", contents=CONTENTS(int_contents=[1, 200])), "'x'.*out of range"),
    "shared memory": (message(parameters={"shared_memory_region": REGION}), "'x'.*shared memory"),
    "no name": (message([bytes(8)], name=""), "no name"),
    "classification": (pb.ModelInferRequest(inputs=[{"name": "x"}], outputs=[BEST]), "'y'.*classification"),
}


@pytest.mark.parametrize(("bad", "told"), BAD_MESSAGES.values(), ids=BAD_MESSAGES.keys())
def test_a_bad_message_is_malformed_and_says_where(bad, told):
    with pytest.raises(Malformed) as caught:
        oip_proto.decode_request(bad)
    assert re.search(told, caught.value.detail), caught.value.detail


@pytest.mark.parametrize(("datatype", "field", "values"), [
    ("BOOL", "bool_contents", [True, False]), ("INT8", "int_contents", [-1, 2]),
    ("INT64", "int64_contents", [-1, 2**62]), ("UINT16", "uint_contents", [1, 65535]),
    ("UINT64", "uint64_contents", [1, 2**64 - 1]), ("FP32", "fp32_contents", [0.5, -2.0]),
    ("FP64", "fp64_contents", [0.1, -2.0]), ("BYTES", "bytes_contents", [b"\xff", b""]),
])  # fmt: skip
def test_typed_contents_are_read_and_answered_in_kind(datatype, field, values):
    call = oip_proto.decode_request(message(datatype=datatype, contents=CONTENTS(**{field: values})))
    told = oip_proto.encode_answer(build_answer(call, {"y": call.feeds["x"]}, "1"), call)
    assert (call.feeds["x"].tolist(), not told.raw_output_contents) == (values, True)
    assert (list(getattr(told.outputs[0].contents, field)), decode_message(told)["y"].tolist()) == (values, values)


def test_one_output_without_typed_form_makes_the_answer_raw_text_is_utf8_and_parameters_of_every_kind_pass():
    call = oip_proto.decode_request(message(contents=CONTENTS(fp32_contents=[1, 2])))
    told = oip_proto.encode_answer(build_answer(call, {"a": np.float16([1]), "b": np.float32([2])}, "1"), call)
    assert [len(raw) for raw in told.raw_output_contents] == [2, 4]
    assert {name: array.tolist() for name, array in decode_message(told).items()} == {"a": [1], "b": [2]}
    for dtype in (object, np.str_):
        told = oip_proto.encode_answer(build_answer(call, {"y": np.array([["pølyp", ""]], dtype)}, "1"), call)
        assert list(told.outputs[0].contents.bytes_contents) == ["pølyp".encode(), b""]
    given = {"flag": True, "count": -3, "share": 0.5, "text": "ä"}
    call = InferCall("m", {"x": np.float32([1])}, parameters=given)
    assert oip_proto.decode_request(encode_message(call)).parameters == given


def test_a_request_is_decoded_with_its_parameters_and_its_timeout_in_microseconds():
    for timeout, seconds in ((250_000, 0.25), (0, None), ("9", None), (True, None), (10**400, 2**53 / 1e6)):
        assert InferCall("m", {}, parameters={"timeout": timeout}).timeout_s == seconds
    feeds, parameters = {"x": np.float32([1, 2]), "y": np.array([b"t"], object)}, {"timeout": 9, "tag": "z"}
    call = InferCall("m", feeds, id="7", requested={"a": True, "b": None}, binary=True, parameters=parameters)
    body = encode_json(call)
    back = oip_json.decode_request("m", "", body.join(), body.header_length)
    assert (back.id, back.binary, dict(back.requested)) == ("7", True, {"a": True, "b": True})
    assert back.parameters == parameters | {"binary_data_output": True}
    assert {name: array.tolist() for name, array in back.feeds.items()} == {"x": [1, 2], "y": [b"t"]}


FLOATS = ("FP16", "FP32", "FP64", "BF16")
SHAPES = hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4)


@st.composite
def arrays(draw: st.DrawFn) -> np.ndarray:
    datatype, shape = draw(st.sampled_from(sorted(tensors.DTYPES))), draw(SHAPES)
    if datatype == "BYTES":
        return draw(hnp.arrays(object, shape, elements=st.binary(max_size=20), fill=st.nothing()))
    if datatype == "BF16":
        wide = draw(hnp.arrays(np.float32, shape, elements=st.floats(-(2.0**99), 2.0**99, width=32)))
        return wide.astype(ml_dtypes.bfloat16)
    finite = {"allow_nan": False, "allow_infinity": False} if datatype in FLOATS else {}
    return draw(hnp.arrays(tensors.DTYPES[datatype], shape, elements=finite or None))


@given(array=arrays(), data=st.data())
def test_bytes_and_values_come_back_as_the_same_array_and_a_wrong_number_of_bytes_is_refused(array, data):
    datatype = tensors.datatype_of("t", array)
    back = tensors.from_raw("t", datatype, array.shape, tensors.to_raw("t", array))
    assert back.dtype == array.dtype
    np.testing.assert_array_equal(back, array)
    values = array.reshape(-1).tolist() if datatype == "BYTES" else tensors.to_values("t", array)
    np.testing.assert_array_equal(tensors.from_values("t", datatype, array.shape, values), array)
    raw = bytes(tensors.to_raw("t", array))
    cut = data.draw(st.integers(0, max(len(raw) - 1, 0)))
    for wrong in (raw[:cut], raw + b"\0"):
        if wrong != raw:
            with pytest.raises(Malformed, match="'t'"):
                tensors.from_raw("t", datatype, array.shape, wrong)


@pytest.mark.parametrize(("datatype", "shape"), [
    ("FP32", [-1]), ("FP32", [2, -3]), ("FP32", [2**31]), ("FP32", [2**63, 2]),
    ("UINT8", [2**30, 2**30, 2**30]), ("UINT8", [0, 2**31 - 1, 2**31 - 1, 2**31 - 1]), ("FP32", [1] * 33),
    ("FP8", [1]), ("fp32", [1]), ("", []),
])  # fmt: skip
def test_impossible_tensors_are_refused_before_anything_is_allocated(datatype, shape):
    with pytest.raises(Malformed, match="Tensor 'weights'", check=lambda e: e.field == "weights"):
        tensors.element_count("weights", datatype, shape)


def test_text_elements_need_their_lengths_only_and_arrays_of_fixed_width_are_bytes():
    with pytest.raises(TooLarge, match="1048577") as caught:
        tensors.from_raw("t", "BYTES", [2**20 + 1], bytes(4 * 2**20 + 4))
    assert (caught.value.field, tensors.from_raw("t", "BYTES", [2], bytes(8)).tolist()) == ("t", [b"", b""])
    assert tensors.from_raw("t", "BYTES", [0], b"").tolist() == []
    for array in (np.array(["a", "äö"]), np.array([b"a", b"\xc3\xa4\xc3\xb6"]), np.array(["a", "äö"], object)):
        assert tensors.from_raw("t", "BYTES", [2], tensors.to_raw("t", array)).tolist() == [b"a", "äö".encode()]
        assert tensors.to_values("t", array) == ["a", "äö"]


@pytest.mark.parametrize("datatype", FLOATS)
def test_nan_and_infinity_are_refused_unless_let_through_and_the_largest_and_smallest_values_pass(datatype):
    kind = tensors.DTYPES[datatype]
    for value in (np.nan, np.inf, -np.inf):
        raw = np.array([0.0, value, 1.0], kind).tobytes()
        with pytest.raises(Malformed, match=r"'t' of .* NaN, infinite"):
            tensors.from_raw("t", datatype, [3], raw)
        found = tensors.from_raw("t", datatype, [3], raw, finite=False)
        np.testing.assert_equal(found.astype(float), [0.0, value, 1.0])
    limits = ml_dtypes.finfo(kind)
    array = np.array([limits.max, limits.min, limits.smallest_subnormal, -0.0], kind)
    np.testing.assert_array_equal(tensors.from_raw("t", datatype, [4], array.tobytes()), array)


def test_bytes_that_are_no_values_of_their_tensor_are_refused():
    # Longer than what is left, far longer, no whole length, something left over, nothing.
    texts = (b"\x05\0\0\0abc", b"\xff\xff\xff\xff", b"\x01\0\0", b"\x01\0\0\0ab", b"")
    wrong = [("BYTES", raw, "don't hold 1 length-prefixed") for raw in texts]
    for datatype, raw, told in (*wrong, ("BOOL", b"\2", "other than 0 and 1")):
        with pytest.raises(Malformed, match=told, check=lambda e: e.field == "t"):
            tensors.from_raw("t", datatype, [1], raw)


@pytest.mark.parametrize(("datatype", "values"), [
    ("INT32", [1.5]), ("INT32", [1.0]), ("INT32", [True]), ("INT32", ["1"]), ("INT32", [None]),
    ("INT32", [[1]]), ("UINT8", [256]), ("UINT8", [-1]), ("UINT64", [2**64]), ("INT64", [2**63]),
    ("INT8", [10**4000]), ("BOOL", [1]), ("BOOL", ["true"]), ("FP32", [True]), ("FP32", ["1.0"]),
    ("FP32", [1e39]), ("FP16", [65520.0]), ("BF16", [1e39]), ("FP64", [10**4000]), ("BF16", [10**4000]),
    ("BYTES", [1]), ("FP32", []), ("FP32", [1.0, 2.0]),
])  # fmt: skip
def test_values_of_another_kind_range_or_number_are_refused(datatype, values):
    with pytest.raises(Malformed, match=r"^Tensor 't'", check=lambda e: e.field == "t"):
        tensors.from_values("t", datatype, [1], values)


def test_raw_tensors_are_views_of_the_bytes_that_they_came_in_or_aligned_copies():
    body = align([b"header!", np.arange(6, dtype="<f4").tobytes()], 7)
    array = tensors.from_raw("t", "FP32", [2, 3], body[7:])
    assert np.shares_memory(array, np.frombuffer(body, np.uint8))
    assert (array.flags.aligned, array.flags.writeable, array.ctypes.data % 64) == (True, True, 0)
    body = align([b"header!", np.arange(6, dtype="<f8").tobytes()], None)
    array = tensors.from_raw("t", "FP64", [6], body[7:])
    assert (array.flags.aligned, np.shares_memory(array, np.frombuffer(body, np.uint8))) == (True, False)
    assert array.tolist() == [0, 1, 2, 3, 4, 5]
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    assert np.shares_memory(np.frombuffer(tensors.to_raw("t", array), np.uint8), array)


@given(st.lists(st.binary(max_size=50), max_size=5), st.integers(0, 300))
def test_aligning_keeps_the_bytes(chunks, header_length):
    whole, body = b"".join(chunks), align(chunks, header_length)
    assert bytes(body) == whole
    if whole:
        assert (np.frombuffer(body, np.uint8).ctypes.data + header_length) % 64 == 0


def test_arrays_of_any_layout_are_written_little_endian_and_row_major_and_what_no_datatype_fits_is_a_fault():
    grid = np.arange(12, dtype=np.float32).reshape(3, 4)
    for array in (grid.astype(">f4"), grid.T, grid[:, ::2], grid.astype(">i2")):
        datatype = tensors.datatype_of("t", array)
        back = tensors.from_raw("t", datatype, array.shape, tensors.to_raw("t", array))
        np.testing.assert_array_equal(back, array)
        np.testing.assert_array_equal(tensors.to_values("t", array), array.reshape(-1))
    for array in (np.array([1j]), np.array(["2026-01-01"], "M8[D]"), np.array([object()]), np.array([3], object)):
        for write in (tensors.to_raw, tensors.to_values):
            with pytest.raises(Fault, match=r"^Tensor 't'", check=lambda e: e.field == "t"):
                write("t", array)


def test_refusals_and_feeds_that_are_not_finite_name_the_tensor_and_say_what_to_do():
    with pytest.raises(Malformed) as unknown:
        tensors.element_count("t", "FP8", [1])
    assert (unknown.value.field, unknown.value.hint) == ("t", f"Known are {', '.join(tensors.DTYPES)}.")
    numbers = (np.float32([np.nan]), np.array([np.nan], np.float16), np.array([np.inf]))
    for array, told in ((np.array([b"\xff"], object), "not UTF-8"), *((each, "NaN or infinite") for each in numbers)):
        with pytest.raises(Malformed, match=rf"^Tensor 't' holds .*{told}") as refused:
            tensors.to_values("t", array)
        assert (refused.value.field, refused.value.hint) == ("t", "Ask for it as binary data.")
    tensors.require_finite({"a": np.float32([1, 2]), "b": np.array([b"x"], object), "c": np.float16([3])})
    for datatype in FLOATS:
        with pytest.raises(Malformed, match=rf"^Tensor 'b' of {datatype} holds NaN", check=lambda e: e.field == "b"):
            tensors.require_finite({"a": np.float32([1]), "b": np.array([np.inf], tensors.DTYPES[datatype])})
