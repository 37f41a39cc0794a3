"""What all tests of this service need."""

import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    """Several suites share this machine's cores."""
    torch.set_num_threads(1)
