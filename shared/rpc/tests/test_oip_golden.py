"""The exact bytes that tritonclient 2.73 sends are decoded and answered; any others end in an error of ours."""

import base64
import contextlib
import json
from pathlib import Path
from typing import Any, get_args

import ml_dtypes
import numpy as np
import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from fovea.api.tensors import Datatype
from fovea.errors import FoveaError, Malformed
from shared.rpc import oip_json, oip_proto
from shared.rpc import open_inference_pb2 as pb
from shared.rpc.oip import InferCall, build_answer
from shared.rpc.protobuf_fields import MAX_FIELDS, WireField, iterate_fields
from shared.rpc.tensors import DTYPES
from shared.rpc.tests.oip_client import decode_json, decode_message, encode_json, encode_message

GOLDEN = json.loads((Path(__file__).parent / "golden" / "oip_requests_tritonclient_2.73.json").read_text())
HTTP = GOLDEN["cases"]
GRPC = GOLDEN["grpc_ModelInferRequest"]


def named(case: dict[str, Any]) -> str:
    form = {True: "binary", False: "json", None: "grpc"}[case.get("binary")]
    return f"{case['datatype']}-{form}"


def stated(case: dict[str, Any]) -> np.ndarray:
    """The values of a case as the array that they describe; BYTES are written as base64 there."""
    if case["datatype"] != "BYTES":
        return np.array(case["values"], DTYPES[case["datatype"]]).reshape(case["shape"])
    array = np.empty(len(case["values"]), object)
    array[:] = [base64.b64decode(value) for value in case["values"]]
    return array.reshape(case["shape"])


def decode(case: dict[str, Any]) -> InferCall:
    return oip_json.decode_request("m", "", base64.b64decode(case["body_b64"]), case["header_length"])


@pytest.mark.parametrize("case", HTTP, ids=named)
def test_an_http_body_decodes_to_its_stated_values_is_answered_and_said_again_by_our_own_client(case):
    call = decode(case)
    assert (call.id, call.requested) == ("r1", {"out": case["binary"]})
    assert call.feeds["in"].dtype == DTYPES[case["datatype"]]
    np.testing.assert_array_equal(call.feeds["in"], stated(case), strict=True)
    body = oip_json.encode_answer(build_answer(call, {"out": call.feeds["in"]}, "7"), call)
    assert (body.header_length is not None) is case["binary"]
    head = json.loads(body.parts[0])
    assert (head["model_name"], head["model_version"], head["id"]) == ("m", "7", "r1")
    np.testing.assert_array_equal(decode_json(body)["out"], stated(case), strict=True)
    again = encode_json(decode(case), binary=case["binary"])
    assert json.loads(again.join()[: again.header_length]) == case["header"]
    assert b"".join(again.parts[1:]) == base64.b64decode(case["body_b64"])[case["header_length"] or 10**6 :]


@pytest.mark.parametrize("case", GRPC, ids=named)
def test_a_grpc_message_decodes_to_its_stated_values_encodes_to_its_bytes_and_is_answered(case):
    sent = base64.b64decode(case["message_b64"])
    call = oip_proto.decode_request(pb.ModelInferRequest.FromString(sent))
    assert (call.model, call.id, dict(call.requested), call.binary) == ("m", "r1", {"out": None}, True)
    np.testing.assert_array_equal(call.feeds["in"], stated(case), strict=True)
    assert encode_message(call).SerializeToString() == sent
    message = oip_proto.encode_answer(build_answer(call, {"out": call.feeds["in"]}, "7"), call)
    back = pb.ModelInferResponse.FromString(message.SerializeToString())
    assert (back.model_name, back.model_version, back.id) == ("m", "7", "r1")
    np.testing.assert_array_equal(decode_message(back)["out"], stated(case), strict=True)


def test_every_datatype_is_among_the_messages_and_those_that_the_client_refuses_are_ours_to_handle():
    assert {case["datatype"] for case in GRPC} == set(DTYPES) == set(get_args(Datatype))
    assert {case["datatype"] for case in HTTP if case["binary"]} == set(DTYPES)
    assert {case["datatype"] for case in GOLDEN["client_refuses"]} == {"BF16", "BYTES"}
    call = InferCall("m", {"in": np.array([0.5, -2], ml_dtypes.bfloat16)}, requested={"out": False})
    body = encode_json(call, binary=False)
    assert oip_json.decode_request("m", "", body.join()).feeds["in"].tolist() == [0.5, -2]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
SHAPES = st.lists(st.integers(-2, 5) | st.integers(), max_size=4) | JSON
PARAMETERS = ["binary_data_size", "shared_memory_region", "binary_data", "classification"]
DATA = st.lists(st.integers(0, 1) | st.floats() | st.text(max_size=3) | JSON, max_size=4) | JSON
FACTS = {
    "datatype": st.sampled_from(sorted(DTYPES)) | JSON, "shape": SHAPES, "data": DATA,
    "parameters": st.dictionaries(st.sampled_from(PARAMETERS), st.integers(-1, 40) | JSON, max_size=2) | JSON,
}  # fmt: skip
TENSORS = st.fixed_dictionaries({"name": st.sampled_from(["x", "y", ""]) | JSON}, optional=FACTS)
REQUESTS = st.fixed_dictionaries(
    {"inputs": st.lists(TENSORS, max_size=3) | JSON},
    optional={"outputs": st.lists(TENSORS, max_size=2) | JSON, "parameters": JSON, "id": JSON},
)


def survives(decode: Any, *args: Any) -> InferCall | None:
    try:
        return decode(*args)
    except FoveaError as error:
        assert (error.status < 500, bool(error.detail)) == (True, True)  # noqa: PT017 - either outcome is fine
    return None


@given(body=st.binary(max_size=200), length=st.none() | st.integers(-5, 250))
def test_random_bytes_raise_only_errors_of_ours(body, length):
    survives(oip_json.decode_request, "m", "", body, length)
    with contextlib.suppress(DecodeError):
        survives(oip_proto.decode_request, pb.ModelInferRequest.FromString(body))


@given(request=REQUESTS, raw=st.binary(max_size=40), binary=st.booleans())
def test_random_requests_raise_only_errors_of_ours(request, raw, binary):
    text = json.dumps(request).encode()
    call = survives(oip_json.decode_request, "m", "", text + (raw if binary else b""), len(text) if binary else None)
    if call is not None:
        again = encode_json(call)
        survives(oip_json.decode_request, "m", "", again.join(), again.header_length)


CONTENTS = st.builds(
    pb.InferTensorContents,
    int_contents=st.lists(st.integers(-(2**31), 2**31 - 1), max_size=2),
    fp32_contents=st.lists(st.floats(width=32), max_size=2),
    bytes_contents=st.lists(st.binary(max_size=3), max_size=2),
)


@given(
    datatype=st.sampled_from(sorted(DTYPES)) | st.text(max_size=4),
    shape=st.lists(st.integers(-1, 3) | st.integers(-(2**63), 2**63 - 1), max_size=3),
    contents=st.none() | CONTENTS,
    raw=st.lists(st.binary(max_size=16), max_size=2),
)
def test_random_tensors_raise_only_errors_of_ours(datatype, shape, contents, raw):
    tensor = pb.ModelInferRequest.InferInputTensor(name="x", datatype=datatype, shape=shape, contents=contents)
    survives(oip_proto.decode_request, pb.ModelInferRequest(inputs=[tensor], raw_input_contents=raw))


def test_each_wire_type_is_stepped_over_and_fields_of_a_real_message_are_those_that_were_set():
    message = b"\x08\x96\x01" + b"\x15abcd" + b"\x19abcdefgh" + b"\x2a\x02hi" + b"\x80\x01\x00" + b"\x32\x00"
    found = [(1, 0, 1, 3), (2, 5, 4, 8), (3, 1, 9, 17), (5, 2, 19, 21), (16, 0, 23, 24), (6, 2, 26, 26)]
    assert (list(iterate_fields(message)), list(iterate_fields(b""))) == ([WireField(*field) for field in found], [])
    raw = bytes(300)  # its length takes two bytes
    message = pb.ModelInferRequest(model_name="pranet", id="7", raw_input_contents=[raw, b"x"]).SerializeToString()
    fields = [(field.number, message[field.start : field.end]) for field in iterate_fields(message)]
    assert fields == [(1, b"pranet"), (3, b"7"), (7, raw), (7, b"x")]


@pytest.mark.parametrize(("message", "told"), [
    (b"\x0a", "in the middle of a number"), (b"\x0a\xff", "in the middle of a number"),
    (b"\xff" * 20, "in the middle of a number"), (b"\x08" + b"\x80" * 10 + b"\x01", "in the middle of a number"),
    (b"\x0a\x03hi", "in the middle of a field"), (b"\x15abc", "in the middle of a field"),
    (b"\x19abcdefg", "in the middle of a field"), (b"\x0b", "unknown wire type 3"),
    (b"\x0f", "unknown wire type 7"), (b"\x00\x01", "a field of the number 0,"),
    (b"\x80\x80\x80\x80\x10\x01", "a field of the number 536870912,"),
])  # fmt: skip
def test_what_is_no_message_is_malformed(message, told):
    with pytest.raises(Malformed, match=told):
        list(iterate_fields(message))


def test_the_largest_number_and_a_varint_of_ten_bytes_are_read_and_fields_up_to_a_limit():
    assert list(iterate_fields(b"\xf8\xff\xff\xff\x0f\x01")) == [WireField(2**29 - 1, 0, 5, 6)]
    assert list(iterate_fields(b"\x08" + b"\x80" * 9 + b"\x01")) == [WireField(1, 0, 1, 11)]
    assert len(list(iterate_fields(b"\x08\x01" * MAX_FIELDS))) == MAX_FIELDS == 4096
    with pytest.raises(Malformed, match="more than 4,096 fields"):
        list(iterate_fields(b"\x08\x01" * (MAX_FIELDS + 1)))
