"""Serialisation of Titans states: a session as bytes that are stored, forked, moved and resumed, never unpickled.

    FOVEATTN | format | CRC-32 of the rest | length of the header | header (JSON) | tensors, little-endian

The header names the model by its digest, the version, the tokens read, and every tensor by name, dtype and shape. Equal
states give equal bytes. Knows states as named tensors; knows no network.
"""

import json
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fovea_memory.mixers.titans.memory import MemoryState

_MAGIC = b"FOVEATTN"
_FORMAT = 1
_HEAD = struct.Struct("<8sIII")
_DTYPES = {"float32": "<f4", "float64": "<f8", "float16": "<f2", "int64": "<i8"}

MAX_STATE_BYTES = 16 * 2**20
"""Bytes that a session's state may have."""


class StateError(ValueError):
    """Bytes that are no state of this model, or a state that may not be stored."""


class StateMismatch(StateError):
    """A state in good order, of another model."""


@dataclass(frozen=True, slots=True)
class SessionState:
    """A state of a whole model: tokens read, streams side by side, and every layer's tensors by name."""

    index: int
    batch: int
    tensors: Mapping[str, Tensor]


def to_tensors(state: MemoryState) -> dict[str, Tensor]:
    """The tensors of a memory's state by name."""
    found = {"rest": state.rest}
    for group in ("weights", "momentum", "base", "tails"):
        found |= {f"{group}.{i}": tensor for i, tensor in enumerate(getattr(state, group))}
    return found


def from_tensors(tensors: Mapping[str, Tensor], index: int) -> MemoryState:
    """The memory's state from the tensors of `to_tensors`.

    Raises:
        StateError: A tensor is missing.
    """

    def group(name: str) -> list[Tensor]:
        return [tensors[f"{name}.{i}"] for i in range(sum(key.startswith(f"{name}.") for key in tensors))]

    try:
        return MemoryState(index, group("weights"), group("momentum"), group("base"), tensors["rest"], group("tails"))
    except KeyError as error:
        raise StateError(f"the state lacks the tensor {error}") from error


def pack_state(state: SessionState, model: str = "", version: int = 0) -> bytes:
    """A state as bytes.

    Args:
        state: State of a session.
        model: Digest of the weights that it belongs to.
        version: Counts the stored versions of a session.

    Raises:
        StateError: It holds values that are not finite: such a memory must be dropped, not kept.
    """
    if broken := [name for name, t in state.tensors.items() if t.is_floating_point() and not bool(t.isfinite().all())]:
        raise StateError(f"the state is not finite: {broken[0]} (and {len(broken) - 1} more)")
    # Numbers of fixed width: what is remembered is of constant size, so the bytes are, too.
    facts = {"kind": "session", "model": model, "version": f"{version:016}", "index": f"{state.index:016}"}
    listed = [(name, str(t.dtype).removeprefix("torch."), list(t.shape)) for name, t in state.tensors.items()]
    told = {**facts, "batch": state.batch, "tensors": listed}
    header = json.dumps(told, separators=(",", ":"), sort_keys=True).encode()
    body = b"".join(
        t.detach().cpu().contiguous().numpy().astype(_DTYPES[dtype]).tobytes()
        for t, (_, dtype, _) in zip(state.tensors.values(), listed, strict=True)
    )
    rest = struct.pack("<I", len(header)) + header + body
    return _HEAD.pack(_MAGIC, _FORMAT, zlib.crc32(rest), len(rest)) + rest


def unpack_state(data: bytes, model: str = "") -> SessionState:
    """The state that bytes hold.

    Raises:
        StateError: They are damaged, of another format, or of another model than `model`.
    """
    rest = _verify(data)
    (size,) = struct.unpack_from("<I", rest)
    try:
        header = json.loads(rest[4 : 4 + size])
        tensors = _tensors(header["tensors"], rest[4 + size :])
        owner, index, batch = header["model"], int(header["index"]), header["batch"]
    except (KeyError, TypeError, ValueError, OverflowError, RecursionError) as error:
        raise StateError(f"the header of the state can't be read: {error}") from error
    if type(batch) is not int or batch < 1 or index < 0 or not isinstance(owner, str):
        raise StateError("the header of the state can't be read: streams, tokens or model are none")
    if owner != model:
        message = f"the state belongs to the model {owner[:16] or 'without a name'}, not to {model[:16] or 'this one'}"
        raise StateMismatch(message)
    return SessionState(index, batch, tensors)


def _verify(data: bytes) -> bytes:
    """The bytes after the fixed head, if the head states them rightly."""
    if len(data) < _HEAD.size + 4:
        raise StateError(f"{len(data)} bytes are too few for a state")
    magic, form, checksum, length = _HEAD.unpack_from(data)
    rest = data[_HEAD.size :]
    problems = {
        "this is not a state": magic != _MAGIC,
        f"format {form} is not known; this is format {_FORMAT}": form != _FORMAT,
        f"{len(rest)} bytes follow, {length} were announced": len(rest) != length,
        "the bytes are damaged: their checksum differs": zlib.crc32(rest) != checksum,
    }
    for message, wrong in problems.items():
        if wrong:
            raise StateError(message)
    return rest


def _tensors(listed: list[Any], body: bytes) -> dict[str, Tensor]:
    found, at = {}, 0
    for name, dtype, shape in listed:
        count = int(np.prod(shape, dtype=np.int64))
        array = np.frombuffer(body, _DTYPES[dtype], count, at).reshape(shape)
        found[name] = torch.from_numpy(array.astype(array.dtype.newbyteorder("=")))
        at += array.nbytes
    if at != len(body):
        raise ValueError(f"{len(body)} bytes of tensors, {at} expected")
    return found
