"""States of sessions that callers import: written by `export`, sent back by anybody."""

import struct
import zlib
from functools import cache
from types import SimpleNamespace
from typing import Any

import torch

from fovea_memory.adapters.titans import TitansAdapter
from shared.registry import network
from tests.fuzz.harness import Harness

_HEAD = 20  # bytes before the part that the checksum is of


@cache
def _adapter() -> Any:
    """The parts of an adapter that an import uses: a small network and its digest."""
    torch.manual_seed(0)
    sizes = {"vocab": 30, "width": 8, "layers": 1, "heads": 1, "segment": 4, "window": 4, "persistent": 1}
    net = network("titans-mac", **sizes, depth=1, refresh=3).eval()
    return SimpleNamespace(net=net, digest="digest", name="tiny")


def _exported() -> bytes:
    session = _adapter().net.session(1)
    session.feed(torch.tensor([[1, 2, 3]]))
    return bytes(session.export("digest", 1))


def _import(data: bytes) -> object:
    session = TitansAdapter.import_state(_adapter(), data)
    session.feed(torch.tensor([[1]]))
    return TitansAdapter.serialize(_adapter(), session, 2)


def _sealed(data: bytes) -> bytes:
    """The state with lengths and checksum as they must be, and as many tensor bytes as there were."""
    rest = data[_HEAD:]
    if (end := rest.find(b"}", 4) + 1) > 4:
        rest = struct.pack("<I", end - 4) + rest[4:]
    return struct.pack("<8sIII", b"FOVEATTN", 1, zlib.crc32(rest), len(rest)) + rest


_WORDS = tuple(b'1e999 NaN [] {} null -1 999999999999 "float16" "int64" [0] "batch": "'.split())
HARNESSES = {"session": Harness(_import, (_exported(), _exported()[:_HEAD]), words=_WORDS, repair=_sealed)}
