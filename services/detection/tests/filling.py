"""The rule that fills networks and pictures from names, so that golden files need to hold only what came out.

Every tensor follows from its key by a checksum; pictures follow from the name of the model.
"""

import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from tests.golden import read_golden

GOLDEN = Path(__file__).parent / "golden"

SEED = 20240617

Net = TypeVar("Net", bound=nn.Module)


def read(name: str) -> Any:
    return read_golden(GOLDEN / name)


def _generator(name: str) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64((zlib.crc32(name.encode()) ^ SEED) & 0xFFFFFFFF))


def noise(name: str, shape: tuple[int, ...]) -> Tensor:
    return torch.from_numpy(_generator(name).standard_normal(shape).astype(np.float32))


def picture(model: str, shape: tuple[int, int, int, int]) -> Tensor:
    """A picture (n, c, h, w): the mean of uniform noises on grids of 1, 8, 32 and 128 pixels."""
    generator = _generator(f"input:{model}:{'x'.join(map(str, shape))}")
    (n, c, h, w), total = shape, np.zeros(shape)
    for cell in (1, 8, 32, 128):
        coarse = generator.random((n, c, -(-h // cell), -(-w // cell)))
        total += coarse.repeat(cell, axis=2).repeat(cell, axis=3)[:, :, :h, :w]
    return torch.from_numpy((total / 4).astype(np.float32))


def filled(net: Net, statistics: Mapping[str, np.ndarray] | None = None, constant: tuple[str, ...] = ()) -> Net:
    """Fill a network by rule, in eval mode; `statistics` replaces running means and variances.

    Keys that end in one of `constant` keep what the constructor gave them.
    """
    state = net.state_dict()
    for key, tensor in state.items():
        if not tensor.is_floating_point():
            state[key] = torch.zeros_like(tensor)
        elif statistics and key in statistics:
            state[key] = torch.from_numpy(statistics[key])
        elif not key.endswith(constant or ("\n",)):
            state[key] = torch.from_numpy(_value(key, tuple(tensor.shape), state).astype(np.float32))
    net.load_state_dict(state)
    net.eval()
    return net


def _value(key: str, shape: tuple[int, ...], state: Mapping[str, Tensor]) -> np.ndarray:
    z, (module, _, last) = _generator(key).standard_normal(shape), key.rpartition(".")
    if last == "running_var":
        return 1 + 0.25 * np.abs(z)
    if last == "running_mean":
        return 0.1 * z
    if key.endswith("bias"):
        return 0.1 * z + (1.5 if f"{module}.running_mean" in state else 0)
    return 1 + 0.1 * z if len(shape) <= 1 else z * np.sqrt(2) / np.sqrt(np.prod(shape[1:]))


def rows(net: nn.Module) -> list[list[Any]]:
    return [[k, list(v.shape), str(v.dtype).removeprefix("torch.")] for k, v in net.state_dict().items()]


def checksum(tensor: Tensor) -> int:
    return zlib.crc32(tensor.contiguous().numpy().tobytes())
