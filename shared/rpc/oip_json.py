"""Codec of Open Inference v2 over HTTP bodies: JSON, then binary tensors from `Inference-Header-Content-Length` on.

Binary tensors are views of the body, so a body that is laid out with `align` costs no copy per tensor.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Final

import numpy as np
import pydantic_core
from pydantic import ValidationError

from fovea.errors import Malformed, TooLarge
from shared.rpc.oip import InferAnswer, InferCall, refuse_unoffered, to_mapping
from shared.rpc.oip_wire import InferRequest, Tensor
from shared.rpc.tensors import datatype_of, from_raw, from_values, to_raw, to_values
from shared.validation_errors import list_errors

HEADER_LENGTH: Final = "inference-header-content-length"
"""HTTP header that says how many bytes of the body are JSON; absent when all are."""

_ALIGNMENT: Final = 64
_MAX_JSON: Final = 32 * 2**20  # values as Python objects take some ten times their JSON


@dataclass(frozen=True, slots=True)
class EncodedBody:
    """An encoded body in parts, JSON first; `header_length` is None when JSON is all there is."""

    parts: Sequence[bytes | memoryview]
    header_length: int | None

    def join(self) -> bytes:
        """The body in one piece."""
        return b"".join(self.parts)


def align(chunks: Sequence[bytes], header_length: int | None) -> memoryview:
    """Join chunks in one writable buffer in which the first binary tensor starts at a multiple of 64 bytes."""
    size = sum(map(len, chunks))
    buffer = np.empty(size + _ALIGNMENT, np.uint8)
    begin = -(buffer.ctypes.data + (header_length or 0)) % _ALIGNMENT
    view, at = buffer.data[begin : begin + size], 0
    for chunk in chunks:
        view[at : at + len(chunk)] = chunk
        at += len(chunk)
    return view


def decode_request(model: str, version: str, body: bytes | memoryview, header_length: int | None = None) -> InferCall:
    """Decode a request body.

    Raises Malformed for a wrong body or tensor (`field` names it), TooLarge for more JSON than is read: tensors that
    large belong in binary data.
    """
    head, raw = _split_body(body, header_length)
    refuse_unoffered("", head.parameters)
    for output in head.outputs:
        refuse_unoffered(output.name, output.parameters)
    requested = [(o.name, _read_flag(o.name, o.parameters, "binary_data")) for o in head.outputs]
    return InferCall(
        model=model,
        version=version,
        id=head.id,
        feeds=_decode_tensors(head.inputs, raw),
        requested=to_mapping("output", requested),
        binary=bool(_read_flag("", head.parameters, "binary_data_output")),
        parameters={n: v for n, v in head.parameters.items() if isinstance(v, bool | int | float | str)},
    )


def encode_answer(answer: InferAnswer, call: InferCall) -> EncodedBody:
    """Encode an answer as the body that `call` requests; `Malformed` for values that the JSON asked for can't carry."""
    head: dict[str, Any] = {"model_name": answer.model, "model_version": answer.version}
    if answer.id:
        head["id"] = answer.id
    tensors, blobs = [], []
    for name, array in answer.outputs.items():
        tensor: dict[str, Any] = {"name": name, "datatype": datatype_of(name, array), "shape": list(array.shape)}
        if call.as_bytes(name):
            blobs.append(to_raw(name, array))
            tensor["parameters"] = {"binary_data_size": len(blobs[-1])}
        else:
            tensor["data"] = to_values(name, array)
        tensors.append(tensor)
    text = pydantic_core.to_json(head | {"outputs": tensors})
    return EncodedBody([text, *blobs], len(text) if blobs else None)


def _split_body(body: bytes | memoryview, header_length: int | None) -> tuple[InferRequest, memoryview | None]:
    """The JSON, checked, and the bytes behind it (None when the whole body is JSON)."""
    view = memoryview(body)
    size = len(view) if header_length is None else header_length
    if not 0 <= size <= len(view):
        raise Malformed(f"{HEADER_LENGTH} is {header_length}, but the body has {len(view)} bytes.")
    if size > _MAX_JSON:
        detail = f"The body has {size} bytes of JSON; at most {_MAX_JSON} are read."
        raise TooLarge(detail, hint="Send large tensors as binary data.")
    try:
        raw = pydantic_core.from_json(bytes(view[:size]).removeprefix(b"\xef\xbb\xbf"), allow_inf_nan=False)  # no BOM
    except ValueError as error:  # also too deep, or not UTF-8
        detail = f"The body is not JSON: {error}."
        raise Malformed(detail, hint="Binary tensors need the header Inference-Header-Content-Length.") from error
    try:
        head = InferRequest.model_validate(raw)
    except ValidationError as error:
        raise _validation_error(error, raw) from error
    return head, None if header_length is None else view[size:]


def _validation_error(error: ValidationError, raw: Any) -> Malformed:
    """The first validation error of the JSON, with the tensor's name where there is one."""
    first = list_errors(error)[0]
    path = first["loc"]
    where = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in path).lstrip(".")
    name = raw["inputs"][path[1]].get("name") if len(path) > 2 and path[0] == "inputs" else None
    tensor = f" (tensor {name!r})" if isinstance(name, str) and len(name) <= 512 else ""
    detail = f"The JSON of the body is not an inference message: {where or 'top'}{tensor}: {first['msg']}."
    return Malformed(detail, field=name if tensor else where or None)


def _decode_tensors(heads: Sequence[Tensor], raw: memoryview | None) -> dict[str, np.ndarray]:
    at, found, blob = 0, [], raw or memoryview(b"")
    for head in heads:
        refuse_unoffered(head.name, head.parameters)
        size = head.parameters.get("binary_data_size")
        if size is None:
            found.append((head.name, _from_json(head)))
            continue
        _check_size(head, size, None if raw is None else len(raw) - at)
        found.append((head.name, from_raw(head.name, head.datatype, head.shape, blob[at : at + size], finite=False)))
        at += size
    if at != len(blob):
        raise Malformed(f"{len(blob) - at} bytes follow the last binary tensor; no `binary_data_size` claims them.")
    return to_mapping("input", found)


def _check_size(head: Tensor, size: Any, left: int | None) -> None:
    if head.data is not None:
        problem = "has both `data` and `binary_data_size`"
    elif type(size) is not int or size < 0:
        problem = "has a `binary_data_size` that is not a number of bytes"
    elif left is None:
        problem = "has a `binary_data_size`, but the header Inference-Header-Content-Length is missing"
    elif size > left:
        problem = f"claims {size} bytes, but {left} are left in the body"
    else:
        return
    raise Malformed(f"Tensor {head.name!r} {problem}.", field=head.name)


def _from_json(head: Tensor) -> np.ndarray:
    if head.data is None:
        raise Malformed(f"Tensor {head.name!r} has neither `data` nor `binary_data_size`.", field=head.name)
    values = _flatten(head) if list in map(type, head.data) else head.data
    return from_values(head.name, head.datatype, head.shape, values)


def _flatten(head: Tensor) -> list[Any]:
    """Nested lists, flattened axis by axis; each level must have the length that the shape says."""
    level: list[Any] = [head.data]
    for axis in head.shape:
        if not all(type(item) is list and len(item) == axis for item in level):
            detail = f"Tensor {head.name!r} holds lists that are not nested as its shape {head.shape} says."
            raise Malformed(detail, field=head.name)
        level = list(chain.from_iterable(level))
    return level


def _read_flag(name: str, parameters: Mapping[str, Any], key: str) -> bool | None:
    value = parameters.get(key)
    if value is not None and not isinstance(value, bool):
        detail = f"The parameter {key!r}{f' of {name!r}' if name else ''} is not true or false."
        raise Malformed(detail, field=name or key)
    return value
