"""A pretended CUDA device, and tiny models on both sides of it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from tests.device.pretend_cuda import PretendCuda


@pytest.fixture
def cuda() -> Iterator[PretendCuda]:
    """A pretended device, active for the test."""
    torch.set_num_threads(1)
    with PretendCuda().active() as device:
        yield device
