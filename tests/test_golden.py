"""Files of golden arrays give back every bit, and the tree of tracked files stays small."""

import subprocess
from pathlib import Path

import numpy as np

from tests.golden import pack, unpack

ROOT = Path(__file__).parents[1]
MOST_BYTES = 56_000_000
"""Of all tracked files together. Look for what can go before you raise it."""


def test_arrays_come_back_bit_by_bit_and_can_be_written_to():
    rng = np.random.default_rng(5)
    arrays = {
        "half": rng.normal(size=(3, 5)).astype(np.float16), "nan": np.array([np.nan, -0.0, np.inf]),
        "single": np.float32(rng.normal(size=(2, 1, 4))), "empty": np.zeros((0, 3), np.float32), "count": np.array(7),
        "mask": rng.random((4, 4)) > 0.5, "names": np.array(["ä", "bcd"]), "bytes": np.arange(9, dtype=np.uint8),
    }  # fmt: skip
    found = unpack(pack(arrays))
    assert found.keys() == arrays.keys()
    for name, array in arrays.items():
        assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape), name
        assert found[name].tobytes() == array.tobytes(), name
        assert found[name].flags.writeable, name


def test_tracked_files_are_small_enough():
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    files = [ROOT / name for name in listed.split("\0") if name and (ROOT / name).exists()]
    assert [str(file) for file in files if file.suffix == ".npz"] == []  # python -m tests.golden FILE.npz
    assert sum(file.lstat().st_size for file in files) < MOST_BYTES
