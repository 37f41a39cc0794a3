"""Builders are found by name and carry the shared keywords."""

import pytest
import torch

from fovea.errors import NotFound
from shared.lm import builders
from shared.registry import discovery

SIZES = {"vocab": 20, "width": 12, "layers": 2, "heads": 3, "hidden": 16, "positions": 32}


@pytest.fixture
def only_lm(monkeypatch):
    monkeypatch.setattr(discovery, "SERVICES", ())


def test_families_are_found_by_name(only_lm):
    families = {"gpt2": builders.gpt2, "llama": builders.llama, "qwen2": builders.qwen2, "gemma3": builders.gemma3}
    assert discovery.networks() == families
    with pytest.raises(NotFound, match="gpt2, llama, qwen2"):
        discovery.network("gpt3")


def test_gpt2_has_no_position_behind_its_table(only_lm):
    model = discovery.network("gpt2", **SIZES)
    assert model(torch.zeros(1, 32, dtype=torch.long)).shape == (1, 32, 20)
    with pytest.raises(ValueError, match="32 positions, not 33"):
        model(torch.zeros(1, 33, dtype=torch.long))


def test_only_the_last_logits_are_computed_when_only_they_are_kept(only_lm):
    model = discovery.network("llama", **SIZES, kv_heads=1)
    ids = torch.arange(10)[None]
    torch.testing.assert_close(model(ids, keep=2), model(ids)[:, -2:])
    assert model(ids, keep=0).shape == (1, 0, 20)
