"""Encodings of requests: Open Inference v2 in JSON and protobuf, and fields that the gateway reads on the way."""

import json

import numpy as np
from google.protobuf.message import DecodeError

from fovea.api.usage import UsageScanner
from fovea.errors import Malformed
from services.gateway.grpc.streams import read_text_field
from services.gateway.routing.json_peek import read_json_field
from shared.rpc import oip_json, oip_proto
from shared.rpc import open_inference_pb2 as pb
from shared.rpc.oip import InferCall
from shared.rpc.protobuf_fields import iterate_fields
from shared.rpc.tests.oip_client import encode_json, encode_message
from tests.fuzz.harness import Harness, ask

_CALL = InferCall("m", {"x": np.arange(6, dtype=np.float32).reshape(2, 3), "t": np.array([b"a", b"bc"], object)})


def _encode_json(*, is_binary: bool) -> bytes:
    return encode_json(InferCall("m", _CALL.feeds, binary=is_binary)).join()


def _decode_json(data: bytes) -> object:
    head = data.find(b"]}") + 2
    for length in (None, head if 2 <= head <= len(data) else None):
        ask(oip_json.decode_request, "m", "", oip_json.align([data], length), length)
    return None


def _decode_protobuf(data: bytes) -> object:
    read_text_field(data, 1)
    list(iterate_fields(data))
    try:
        message = pb.ModelInferRequest.FromString(data)
    except DecodeError as error:
        raise Malformed("no message") from error
    return oip_proto.decode_request(message)


def _scan_usage(data: bytes, *, is_stream: bool = True) -> object:
    scanner = UsageScanner(is_stream=is_stream)
    for start in range(0, len(data), 7 if is_stream else max(len(data), 1)):
        scanner.feed(data[start : start + 7])
    return scanner.sum_up(1.0)


_MESSAGE = encode_message(_CALL).SerializeToString()
HARNESSES: dict[str, Harness] = {
    "oip-json": Harness(_decode_json, (_encode_json(is_binary=False), _encode_json(is_binary=True)), words=(
        b'"binary_data_size":', b'"shape":', b"[]", b"-1", b"1e999", b"NaN", b'"BYTES"', b"[" * 100,
    )),
    "oip-protobuf": Harness(_decode_protobuf, (_MESSAGE, b"\0" * 20), words=(b"\xff" * 9,)),
    "json-field": Harness(
        lambda data: read_json_field(data, "model"), (b'{"a": {"model": 1}, "model": "x"}', b'["\\"", {}]')
    ),
    "usage": Harness(_scan_usage, (b'data: {"model":"m","choices":[{}],"usage":{"prompt_tokens":1}}\n\n',), words=(
        b"data: ", b"\n\n", b"1e999", b"NaN", b"[]", b"null", b'"usage":', b"-1",
    )),
    "json": Harness(lambda data: json.dumps(_scan_usage(data, is_stream=False)), (b'{"usage": {}}',)),
}  # fmt: skip
