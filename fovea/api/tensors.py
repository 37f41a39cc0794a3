"""Tensors as facts: names, Open Inference datatypes and shapes. The bytes themselves are `shared.rpc`'s."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

Datatype = Literal[
    "BOOL",
    "UINT8",
    "UINT16",
    "UINT32",
    "UINT64",
    "INT8",
    "INT16",
    "INT32",
    "INT64",
    "FP16",
    "FP32",
    "FP64",
    "BF16",
    "BYTES",
]


class TensorSpec(BaseModel):
    """One input or output of a model: its name, datatype and shape; -1 marks an axis of any length."""

    model_config = ConfigDict(frozen=True)

    name: str
    datatype: Datatype
    shape: tuple[int, ...]
