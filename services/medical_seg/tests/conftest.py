"""Shared by the tests of this service: golden data and the rule that fills networks and pictures from it.

Every tensor follows from its name by a checksum, so the golden files need to hold only what came out.
"""

import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tests.golden import read_golden

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    torch.set_num_threads(1)


def uniform(name: str, shape: tuple[int, ...]) -> np.ndarray:
    return np.random.Generator(np.random.PCG64(zlib.crc32(f"public-v1:{name}".encode()))).random(shape)


def _weight(key: str, shape: tuple[int, ...]) -> np.ndarray:
    r = uniform(key, shape)
    u, last = (2 * r - 1) * np.sqrt(3), key.rpartition(".")[2]
    if last == "num_batches_tracked":
        return np.zeros(shape, dtype=np.int64)
    scaled = {"running_var": 0.5 + r, "running_mean": 0.1 * u, "bias": 0.05 * u}
    if last in scaled:
        value = scaled[last]
    elif len(shape) == 1:
        value = 1 + 0.1 * u
    else:
        value = 0.95 * u / np.sqrt(np.prod(shape[1:]))
    return np.asarray(value, dtype=np.float32)


def _smooth(name: str, shape: tuple[int, int, int, int], cell: int) -> np.ndarray:
    n, c, h, w = shape
    coarse = uniform(name, (n, c, -(-h // cell), -(-w // cell)))
    return coarse.repeat(cell, axis=2).repeat(cell, axis=3)[:, :, :h, :w]


@pytest.fixture(scope="session")
def golden():
    def read(name: str) -> Any:
        return read_golden(GOLDEN / name)

    return read


@pytest.fixture(scope="session")
def fill():
    def fill_in(net: nn.Module) -> nn.Module:
        state = {k: torch.from_numpy(_weight(k, tuple(v.shape))) for k, v in net.state_dict().items()}
        net.load_state_dict(state)
        return net.eval()

    return fill_in


@pytest.fixture(scope="session")
def picture():
    def draw(n: int, h: int, w: int) -> torch.Tensor:
        name, shape = f"input:{n}x3x{h}x{w}", (n, 3, h, w)
        z = 0.7 * _smooth(f"{name}:lo", shape, 16) + 0.3 * uniform(f"{name}:hi", shape)
        mean, std = (np.array(v).reshape(1, 3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
        return torch.from_numpy(((z - mean) / std).astype(np.float32))

    return draw


@pytest.fixture(scope="session")
def mask():
    def draw(n: int, h: int, w: int) -> torch.Tensor:
        return torch.from_numpy((_smooth(f"mask:{n}x1x{h}x{w}", (n, 1, h, w), 32) > 0.6).astype(np.float32))

    return draw
