"""Serialisation of landmark sessions: cached blocks as bytes that another process restores as if it had read the text.

A safetensors file, never a pickle: per layer the full blocks and the tail of the open one, and in the header the key of
the prefix that was read. Shapes follow from the number of tokens, so a file either fits exactly or is refused.
Landmarks' keys are not written: they are in their blocks. Knows sessions; knows no store.
"""

import json
import struct

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from fovea_memory.mixers.landmark.session import LandmarkSession

_LENGTH = struct.Struct("<Q")
_FORM = "fovea landmark blocks 1"


class BlocksError(ValueError):
    """Bytes that are not the blocks of this prefix under these weights and options."""


def pack_blocks(session: LandmarkSession, prefix_key: str) -> bytes:
    """Serialise a session; `prefix_key` identifies tokens, weights and options."""
    return save(session.state(), {"form": _FORM, "beginning": prefix_key})


def unpack_blocks(data: bytes, prefix_key: str, empty: LandmarkSession, tokens: int) -> LandmarkSession:
    """Restore a session from bytes.

    Args:
        data: Bytes of `pack_blocks`.
        prefix_key: Must be the key that they were packed with.
        empty: An empty session with the same options; it is filled.
        tokens: Tokens that were read.

    Raises:
        BlocksError: The bytes are damaged, of another prefix, of other names, shapes or types, or not finite.
    """
    try:
        header, tensors = _read_header(data), load(data)
    except (SafetensorError, struct.error, ValueError, KeyError) as error:
        raise BlocksError(f"the bytes are damaged: {error}") from error
    if header != {"form": _FORM, "beginning": prefix_key}:
        raise BlocksError("they are of another text, other weights, or another form")
    _check(tensors, empty, tokens)
    empty.restore(tensors, tokens)
    return empty


def _read_header(data: bytes) -> object:
    """The metadata next to the tensors, which safetensors' reader of bytes leaves out."""
    (size,) = _LENGTH.unpack_from(data)
    return json.loads(data[_LENGTH.size : _LENGTH.size + size]).get("__metadata__")


def _check(tensors: dict[str, Tensor], session: LandmarkSession, tokens: int) -> None:
    expected = session.state_shapes(tokens)
    if tensors.keys() != expected.keys():
        raise BlocksError(f"tensors differ: {min(tensors.keys() ^ expected.keys())}")
    for name, tensor in tensors.items():
        if tensor.shape != expected[name] or tensor.dtype != session.dtype:
            raise BlocksError(f"{name} is {tensor.dtype} {tuple(tensor.shape)}, not {session.dtype} {expected[name]}")
        if not bool(tensor.isfinite().all()):
            raise BlocksError(f"{name} is not finite")
