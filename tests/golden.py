"""Golden data: JSON as it is, and named arrays in files `.arrays`, which are a quarter smaller than `.npz`.

    python -m tests.golden FILE.npz…        write FILE.arrays next to each
    python -m tests.golden FILE.arrays…     write FILE.npz, to look into it with numpy

An `.arrays` file is xz of a line of JSON (name, dtype and shape of each array) and of all values by dtype: first the
first byte of every value, then the second, and so on. Values are kept bit by bit.
"""

import json
import lzma
import math
import sys
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

_FILTERS = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "lc": 0, "lp": 0, "pb": 0}]


def read_golden(path: Path) -> Any:
    """Read JSON, or arrays by name."""
    return json.loads(path.read_text("utf8")) if path.suffix == ".json" else unpack(path.read_bytes())


def pack(arrays: dict[str, np.ndarray]) -> bytes:
    """Bytes of an `.arrays` file."""
    ordered = sorted(arrays.items(), key=lambda one: one[1].dtype.str)
    parts = [json.dumps([[name, array.dtype.str, array.shape] for name, array in ordered]).encode(), b"\n"]
    for _, group in groupby((array for _, array in ordered), key=lambda array: array.dtype.str):
        flat = np.concatenate([array.reshape(-1) for array in group])
        parts.append(flat.view(np.uint8).reshape(-1, _width(flat.dtype)).T.tobytes())
    return lzma.compress(b"".join(parts), filters=_FILTERS)


def unpack(raw: bytes) -> dict[str, np.ndarray]:
    head, _, body = lzma.decompress(raw).partition(b"\n")
    found, place = {}, 0
    for kind, group in groupby(json.loads(head), key=lambda entry: entry[1]):
        entries, dtype = [(name, math.prod(shape), shape) for name, _, shape in group], np.dtype(kind)
        size = dtype.itemsize * sum(count for _, count, _ in entries)
        planes = np.frombuffer(body, np.uint8, size, place).reshape(_width(dtype), -1)
        flat, place, start = np.array(planes.T, order="C").reshape(-1).view(dtype), place + size, 0
        for name, count, shape in entries:
            found[name], start = flat[start : start + count].reshape(shape), start + count
    return found


def _width(dtype: np.dtype[Any]) -> int:
    """Bytes of a value; text has one of four bytes for each character."""
    return 4 if dtype.kind == "U" else dtype.itemsize


if __name__ == "__main__":
    for given in map(Path, sys.argv[1:]):
        if given.suffix == ".npz":
            with np.load(given) as archive:
                given.with_suffix(".arrays").write_bytes(pack(dict(archive)))
        else:
            np.savez(given.with_suffix(".npz"), **read_golden(given))
