"""The exact bytes that tritonclient 2.73 sends: decoded to their stated values, answered, and decoded back."""

import base64
import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from shared.rpc import oip_json, oip_proto
from shared.rpc import open_inference_pb2 as pb
from shared.rpc.oip import InferCall, build_answer
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
    assert {case["datatype"] for case in GRPC} == set(DTYPES)
    assert {case["datatype"] for case in HTTP if case["binary"]} == set(DTYPES)
    refused = {case["datatype"] for case in GOLDEN["client_refuses"]}
    assert refused == {"BF16", "BYTES"}
    call = InferCall("m", {"in": np.array([0.5, -2], ml_dtypes.bfloat16)}, requested={"out": False})
    body = encode_json(call, binary=False)
    assert oip_json.decode_request("m", "", body.join()).feeds["in"].tolist() == [0.5, -2]
