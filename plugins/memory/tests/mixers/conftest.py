"""Golden arrays of the trained mixers, and their weights by rule."""

import json
import pathlib
import zlib

import numpy as np
import pytest
import torch

from tests.golden import read_golden

GOLDEN = pathlib.Path(__file__).parent / "golden"


class Golden:
    """One golden file: arrays by name, configuration, and weights that are made and not stored."""

    def __init__(self, name):
        self.facts = json.loads((GOLDEN / f"{name}.keys.json").read_text("utf8"))
        arrays = read_golden(GOLDEN / f"{name}.arrays")
        self.arrays = {key: torch.from_numpy(arrays[key]) for key in arrays}
        self.config = self.facts.get("config", {})

    def __getitem__(self, name):
        return self.arrays[name]

    def made(self, name, shape, scale=1.0, offset=0.0):
        """An array by the rule: normal numbers seeded by its name."""
        draw = np.random.RandomState((zlib.crc32(name.encode()) + self.facts["seed"]) % 2**32)
        return torch.from_numpy((draw.standard_normal(shape) * scale + offset).astype(np.float32))

    def weights(self, listed=None):
        listed = (listed or self.facts["weights"]).items()
        sizes = {key: (fact["shape"], fact["scale"], fact["offset"]) for key, fact in listed if "rule" not in fact}
        return {key: self.made(key, *size) for key, size in sizes.items()}


@pytest.fixture
def golden():
    torch.set_num_threads(1)
    return Golden
