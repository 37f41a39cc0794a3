"""Tensors as facts: names, Open Inference datatypes and shapes. The bytes themselves are `shared.rpc`'s."""

from typing import Literal

from pydantic import BaseModel

Datatype = Literal[
    "BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64", "FP16", "FP32", "FP64", "BF16",
    "BYTES",
]  # fmt: skip


class TensorSpec(BaseModel, frozen=True):
    """One input or output of a model: its name, datatype and shape; -1 marks an axis of any length."""

    name: str
    datatype: Datatype
    shape: tuple[int, ...]
