"""Environments of clients: they pin what the platform pins otherwise, so each has one of its own, made on demand."""

import os
from pathlib import Path

import pytest

from loadtests.bench.peers.environment import PeerMissing, prepare_environment

ROOT = Path.home() / ".cache/fovea/clients"

OFFLINE = os.environ | {
    "HF_HUB_OFFLINE": "1", "LITELLM_LOCAL_MODEL_COST_MAP": "True", "OPENAI_AGENTS_DISABLE_TRACING": "1",
}  # fmt: skip
"""Variables under which clients do not look for a hub."""


def environment(name: str, requirements: Path) -> Path:
    """The interpreter of a client's environment; the test is skipped where pip can't install it."""
    try:
        return prepare_environment(name, requirements, ROOT)
    except PeerMissing as error:
        pytest.skip(str(error))
