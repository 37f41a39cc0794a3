"""A client's half of the codec, for tests: encodes requests and decodes answers, through the server's half."""

import json
from typing import Any

import numpy as np

from shared.rpc import oip_json, oip_proto
from shared.rpc import open_inference_pb2 as pb
from shared.rpc.oip import InferAnswer, InferCall
from shared.rpc.tensors import datatype_of, to_raw


def encode_json(call: InferCall, *, binary: bool = True) -> oip_json.EncodedBody:
    """A request body; `binary` says how the inputs travel, `call` how the outputs do."""
    body = oip_json.encode_answer(InferAnswer("", "", call.feeds), InferCall("", {}, binary=binary))
    head: dict[str, Any] = {"id": call.id} if call.id else {}
    if parameters := dict(call.parameters) | ({"binary_data_output": True} if call.binary else {}):
        head["parameters"] = parameters
    if call.requested:
        head["outputs"] = [{"name": n, "parameters": {"binary_data": call.as_bytes(n)}} for n in call.requested]
    text = json.dumps(head | {"inputs": json.loads(body.parts[0])["outputs"]}).encode()
    return oip_json.EncodedBody([text, *body.parts[1:]], len(text) if body.header_length else None)


def decode_json(body: oip_json.EncodedBody) -> dict[str, np.ndarray]:
    """The outputs of an answer's body."""
    text = json.dumps({"inputs": json.loads(body.parts[0])["outputs"]}).encode()
    length = len(text) if body.header_length else None
    return dict(oip_json.decode_request("", "", b"".join([text, *body.parts[1:]]), length).feeds)


def encode_message(call: InferCall) -> pb.ModelInferRequest:
    """A request message, whose tensors travel raw."""
    message = pb.ModelInferRequest(model_name=call.model, model_version=call.version, id=call.id)
    for key, value in call.parameters.items():
        kind = {bool: "bool_param", int: "int64_param", float: "double_param", str: "string_param"}[type(value)]
        setattr(message.parameters[key], kind, value)
    for name in call.requested:
        message.outputs.add(name=name)
    for name, array in call.feeds.items():
        message.inputs.add(name=name, datatype=datatype_of(name, array), shape=array.shape)
        message.raw_input_contents.append(bytes(to_raw(name, array)))
    return message


def decode_message(message: pb.ModelInferResponse) -> dict[str, np.ndarray]:
    """The outputs of an answer message."""
    request = pb.ModelInferRequest(raw_input_contents=message.raw_output_contents)
    for tensor in message.outputs:
        contents = tensor.contents if tensor.HasField("contents") else None
        request.inputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape, contents=contents)
    return dict(oip_proto.decode_request(request).feeds)
