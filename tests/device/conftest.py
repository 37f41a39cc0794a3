"""One thread: the models here are too small for two, which would only wait for each other."""

import os

import pytest
import torch

# Triton settles what its own library is compiled to when it is imported first: here, to Python.
os.environ["TRITON_INTERPRET"] = "1"


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    torch.set_num_threads(1)
