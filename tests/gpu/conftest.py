"""Tests of a card are collected where there is one, and in a dry run; `tests/device` runs `checks` on a stand-in."""

import os

import pytest
import torch

DRY = "FOVEA_GPU_DRY_RUN" in os.environ

collect_ignore_glob = [] if DRY or torch.cuda.is_available() else ["test_*.py"]


@pytest.fixture(autouse=True, scope="session")
def _kernels_are_compiled():
    from services.llm_longctx.kernels import dispatch

    assert dispatch.is_interpreted() is DRY, "TRITON_INTERPRET is set: no kernel would run on the card"
