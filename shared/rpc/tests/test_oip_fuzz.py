"""Whatever bytes come, the codec answers with a call or with an error of ours."""

import json
from typing import Any

from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from fovea.errors import FoveaError
from shared.rpc import oip_json, oip_proto
from shared.rpc import open_inference_pb2 as pb
from shared.rpc.oip import InferCall
from shared.rpc.tensors import DTYPES
from shared.rpc.tests.oip_client import encode_json

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
SHAPES = st.lists(st.integers(-2, 5) | st.integers(), max_size=4) | JSON
TENSORS = st.fixed_dictionaries(
    {"name": st.sampled_from(["x", "y", ""]) | JSON},
    optional={
        "datatype": st.sampled_from(sorted(DTYPES)) | JSON,
        "shape": SHAPES,
        "data": st.lists(st.integers(0, 1) | st.floats() | st.text(max_size=3) | JSON, max_size=4) | JSON,
        "parameters": st.dictionaries(
            st.sampled_from(["binary_data_size", "shared_memory_region", "binary_data", "classification"]),
            st.integers(-1, 40) | JSON,
            max_size=2,
        )
        | JSON,
    },
)
REQUESTS = st.fixed_dictionaries(
    {"inputs": st.lists(TENSORS, max_size=3) | JSON},
    optional={"outputs": st.lists(TENSORS, max_size=2) | JSON, "parameters": JSON, "id": JSON},
)


def survives(decode: Any, *args: Any) -> InferCall | None:
    refused: FoveaError | None = None
    try:
        return decode(*args)
    except FoveaError as error:
        refused = error
    assert refused.status < 500
    assert refused.detail
    return None


@given(body=st.binary(max_size=200), length=st.none() | st.integers(-5, 250))
def test_random_bytes_raise_only_errors_of_ours(body, length):
    survives(oip_json.decode_request, "m", "", body, length)


@given(request=REQUESTS, raw=st.binary(max_size=40), binary=st.booleans())
def test_random_requests_raise_only_errors_of_ours(request, raw, binary):
    text = json.dumps(request).encode()
    call = survives(oip_json.decode_request, "m", "", text + (raw if binary else b""), len(text) if binary else None)
    if call is not None:
        survives(oip_json.decode_request, "m", "", *_again(call))


def _again(call: InferCall) -> tuple[bytes, int | None]:
    body = encode_json(call)
    return body.join(), body.header_length


@given(st.binary(max_size=200))
def test_random_messages_raise_only_errors_of_ours(data):
    try:
        message = pb.ModelInferRequest.FromString(data)
    except DecodeError:
        return
    survives(oip_proto.decode_request, message)


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
