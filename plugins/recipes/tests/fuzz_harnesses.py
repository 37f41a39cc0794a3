"""Fuzz harnesses of checkpoints: safetensors, and files that are pickles."""

import io
import json
import pickle
from pathlib import Path

import torch
from safetensors.torch import save
from torch import nn

from fovea_recipes.training.checkpoint_import import compare, read_checkpoint_file
from fovea_recipes.training.safe_unpickler import read_unpickled
from tests.fuzz.harness import Harness, with_file

_LIMIT = 2**20


def _saved(held: object) -> bytes:
    out = io.BytesIO()
    torch.save(held, out)
    return out.getvalue()


_STATE = {"a": torch.ones(2, 3), "b": torch.zeros(3, dtype=torch.float16)}


def _import(file: Path) -> object:
    return compare(read_checkpoint_file(file, _LIMIT), _STATE, idle=("b",))


def _with_length(data: bytes) -> bytes:
    """A safetensors file whose header is as long as it says, where its end can be told."""
    end = data.find(b"]}}", 8) + 3
    return (end - 8).to_bytes(8, "little") + data[8:] if end > 8 else data


HARNESSES: dict[str, Harness] = {
    "checkpoint": Harness(with_file(read_unpickled, ".pth"), (
        _saved({"a": torch.zeros(2, 3)}), _saved(nn.Linear(2, 3)), pickle.dumps({"a": [1, "b"]}),
    )),
    "state-dict": Harness(with_file(_import, ".pth"), (_saved({"state_dict": _STATE}), _saved([1]))),
    "safetensors": Harness(with_file(_import, ".safetensors"), (
        save(_STATE), save({"state_dict": torch.zeros(1)}, {"form": json.dumps(1)}),
    ), words=(
        b'"F8_E4M3"', b'"BF16"', b'"shape":[0]', b"[0,0]", b"18446744073709551615", b'"a":', b"{}", b"]}}",
    ), repair=_with_length),
}  # fmt: skip
