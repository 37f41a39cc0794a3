"""Builders are found by name and carry the shared keywords."""

import pytest
import torch

from shared.errors import NotFound
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


def test_a_family_is_a_set_of_facts(only_lm):
    plain = discovery.network("llama", **SIZES, kv_heads=1, rope_theta=1e6, norm_eps=1e-6, tied=True)
    biased = discovery.network("qwen2", **SIZES, kv_heads=1)
    extra = set(biased.state_dict()) - set(plain.state_dict())
    assert extra == {f"model.layers.{l}.self_attn.{p}_proj.bias" for l in range(2) for p in "qkv"}


def test_heads_may_be_wider_than_the_model_shares_out(only_lm):
    wide = discovery.network("llama", **SIZES, kv_heads=3, head_dim=8)
    assert wide.model.layers[0].self_attn.q_proj.weight.shape == (24, 12)
    assert wide(torch.tensor([[1, 2]])).shape == (1, 2, 20)


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
