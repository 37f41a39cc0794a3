"""What a landmark session has read, as bytes: kept elsewhere, and taken up by another process as if it had read itself.

A safetensors file, never a pickle: per layer the full blocks and the tail of the open one, and in the header the name
of the beginning that was read. Shapes follow from the number of tokens, so that a file either fits to the last number
or is refused. Landmarks' keys are not written: they are in their blocks. Knows sessions; knows no store.
"""

from __future__ import annotations

import json
import struct

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from services.llm_longctx.mixers.landmark.session import LandmarkSession

__all__ = ["BlocksError", "pack_blocks", "unpack_blocks"]

_LENGTH = struct.Struct("<Q")
_FORM = "fovea landmark blocks 1"


class BlocksError(ValueError):
    """Bytes that are not what was read of this text, under these weights, in this way."""


def pack_blocks(session: LandmarkSession, beginning: str) -> bytes:
    """A session as bytes; `beginning` names text, weights and way of reading."""
    return save(session.state(), {"form": _FORM, "beginning": beginning})


def unpack_blocks(data: bytes, beginning: str, fresh: LandmarkSession, tokens: int) -> LandmarkSession:
    """The session that these bytes were.

    Args:
        data: What `pack_blocks` gave.
        beginning: Must be what they were packed with.
        fresh: An empty session that reads in the same way; it is filled.
        tokens: Tokens that were read.

    Raises:
        BlocksError: They are damaged, of another beginning, of other names, shapes or types, or not finite.
    """
    try:
        told, tensors = _header(data), load(data)
    except (SafetensorError, struct.error, ValueError, KeyError) as error:
        message = f"the bytes are damaged: {error}"
        raise BlocksError(message) from error
    if told != {"form": _FORM, "beginning": beginning}:
        message = "they are of another text, other weights, or another form"
        raise BlocksError(message)
    _check(tensors, fresh, tokens)
    fresh.restore(tensors, tokens)
    return fresh


def _header(data: bytes) -> object:
    """The words beside the tensors, which the library's own reader of bytes leaves out."""
    (size,) = _LENGTH.unpack_from(data)
    return json.loads(data[_LENGTH.size : _LENGTH.size + size]).get("__metadata__")


def _check(tensors: dict[str, Tensor], fresh: LandmarkSession, tokens: int) -> None:
    wanted = fresh.shapes(tokens)
    if tensors.keys() != wanted.keys():
        message = f"tensors differ: {min(tensors.keys() ^ wanted.keys())}"
        raise BlocksError(message)
    for name, tensor in tensors.items():
        if tensor.shape != wanted[name] or tensor.dtype != fresh.dtype:
            message = f"{name} is {tensor.dtype} {tuple(tensor.shape)}, not {fresh.dtype} {wanted[name]}"
            raise BlocksError(message)
        if not bool(tensor.isfinite().all()):
            message = f"{name} is not finite"
            raise BlocksError(message)
