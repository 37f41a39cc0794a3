"""The public rule of golden data: numbers follow from a name by a checksum, so files hold only what came out."""

import zlib

import numpy as np
import pytest
import torch


def uniform(name: str, shape: tuple[int, ...]) -> np.ndarray:
    return np.random.Generator(np.random.PCG64(zlib.crc32(f"public-v1:{name}".encode()))).random(shape)


def smooth(name: str, shape: tuple[int, int, int, int], cell: int) -> np.ndarray:
    """Numbers (n, c, h, w) that are alike in cells of so many pixels."""
    n, c, h, w = shape
    return uniform(name, (n, c, -(-h // cell), -(-w // cell))).repeat(cell, axis=2).repeat(cell, axis=3)[:, :, :h, :w]


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    torch.set_num_threads(1)
