"""Codec of Open Inference v2 over protobuf messages, with raw or typed contents. Raw requests get raw answers."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Final

import numpy as np

from fovea.errors import Malformed
from shared.rpc import open_inference_pb2 as pb
from shared.rpc.oip import InferAnswer, InferCall, Parameter, refuse_unoffered, to_mapping
from shared.rpc.tensors import datatype_of, element_count, from_raw, from_values, list_items, to_raw

_FIELDS: Final[Mapping[str, str]] = MappingProxyType(
    dict.fromkeys(("INT8", "INT16", "INT32"), "int_contents")
    | dict.fromkeys(("UINT8", "UINT16", "UINT32"), "uint_contents")
    | {name: f"{name.lower()}_contents" for name in ("BOOL", "INT64", "UINT64", "FP32", "FP64", "BYTES")}
)
"""Field of typed contents for each datatype; FP16 and BF16 have none."""

_Tensor = pb.ModelInferRequest.InferInputTensor


def decode_request(message: pb.ModelInferRequest) -> InferCall:
    """Decode a request message; `Malformed` if a tensor is not what it claims to be (`field` names it)."""
    parameters = _parameters(message.parameters)
    refuse_unoffered("", parameters)
    if not message.inputs:
        raise Malformed("The request has no inputs.")
    for output in message.outputs:
        refuse_unoffered(output.name, _parameters(output.parameters))
    return InferCall(
        model=message.model_name,
        version=message.model_version,
        id=message.id,
        feeds=_tensors(message.inputs, message.raw_input_contents),
        requested=to_mapping("output", ((output.name, None) for output in message.outputs)),
        binary=bool(message.raw_input_contents),
        parameters=parameters,
    )


def encode_answer(answer: InferAnswer, call: InferCall) -> pb.ModelInferResponse:
    """Encode an answer as the message that `call` requests; all raw when one output has no typed form."""
    message = pb.ModelInferResponse(model_name=answer.model, model_version=answer.version, id=answer.id)
    types = {name: datatype_of(name, array) for name, array in answer.outputs.items()}
    raw = call.binary or not types.keys() or any(datatype not in _FIELDS for datatype in types.values())
    for name, array in answer.outputs.items():
        tensor = message.outputs.add(name=name, datatype=types[name], shape=array.shape)
        if raw:
            message.raw_output_contents.append(bytes(to_raw(name, array)))
        else:
            values = list_items(name, array) if types[name] == "BYTES" else array.reshape(-1).tolist()
            getattr(tensor.contents, _FIELDS[types[name]]).extend(values)
    return message


def _tensors(messages: Sequence[_Tensor], raw: Sequence[bytes]) -> dict[str, np.ndarray]:
    if raw and len(raw) != len(messages):
        raise Malformed(f"{len(raw)} raw contents came for {len(messages)} inputs.")
    found = []
    for index, tensor in enumerate(messages):
        refuse_unoffered(tensor.name, _parameters(tensor.parameters))
        if not raw:
            array = _from_contents(tensor)
        elif tensor.contents.ListFields():
            raise Malformed(f"Tensor {tensor.name!r} has both raw and typed contents.", field=tensor.name)
        else:
            array = from_raw(tensor.name, tensor.datatype, tensor.shape, raw[index], finite=False)
        found.append((tensor.name, array))
    return to_mapping("input", found)


def _from_contents(tensor: _Tensor) -> np.ndarray:
    element_count(tensor.name, tensor.datatype, tensor.shape)
    field = _FIELDS.get(tensor.datatype)
    if field is None:
        detail = f"Tensor {tensor.name!r} of {tensor.datatype} has no typed contents."
        raise Malformed(detail, field=tensor.name, hint="Send it in raw_input_contents.")
    if odd := [set_field.name for set_field, _ in tensor.contents.ListFields() if set_field.name != field]:
        detail = f"Tensor {tensor.name!r} of {tensor.datatype} travels in {field}, but {', '.join(odd)} came."
        raise Malformed(detail, field=tensor.name)
    return from_values(tensor.name, tensor.datatype, tensor.shape, list(getattr(tensor.contents, field)), finite=False)


def _parameters(message: Mapping[str, pb.InferParameter]) -> dict[str, Parameter]:
    return {k: getattr(v, choice) for k, v in message.items() if (choice := v.WhichOneof("parameter_choice"))}
