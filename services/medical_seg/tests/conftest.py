"""Golden data of this service, and the rule that fills networks and pictures."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from tests.golden import read_golden
from tests.harness.public_rule import one_thread, smooth, uniform  # noqa: F401  # a fixture among them

GOLDEN = Path(__file__).parent / "golden"


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


@pytest.fixture(scope="session")
def golden():
    return lambda name: read_golden(GOLDEN / name)


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
        z = 0.7 * smooth(f"{name}:lo", shape, 16) + 0.3 * uniform(f"{name}:hi", shape)
        mean, std = (np.array(v).reshape(1, 3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
        return torch.from_numpy(((z - mean) / std).astype(np.float32))

    return draw


@pytest.fixture(scope="session")
def mask():
    def draw(n: int, h: int, w: int) -> torch.Tensor:
        return torch.from_numpy((smooth(f"mask:{n}x1x{h}x{w}", (n, 1, h, w), 32) > 0.6).astype(np.float32))

    return draw
