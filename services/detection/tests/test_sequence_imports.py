"""Checkpoints of BMN and OAT as they are published: with a stored mask, and as a trainer keeps them."""

from pathlib import Path

import pytest
import torch

from shared.registry import network
from shared.registry.weights import read_weights
from shared.training.checkpoint_import import import_weights


@pytest.mark.slow
def test_a_public_bmn_checkpoint_with_its_mask_is_imported_and_the_mask_left_out(tmp_path: Path) -> None:
    state = network("bmn").state_dict()
    stored = {f"module.{key}": value for key, value in {"sample_mask": torch.zeros(100, 320_000), **state}.items()}
    torch.save({"epoch": 9, "state_dict": stored}, tmp_path / "BMN_best.pth")
    found = import_weights("bmn", tmp_path / "BMN_best.pth", tmp_path / "weights")
    assert found.missing == []
    assert found.unexpected == ["sample_mask"]
    weights = read_weights(tmp_path / "weights" / "bmn.safetensors")
    assert torch.equal(torch.from_numpy(weights.arrays["x_1d_b.0.weight"]), state["x_1d_b.0.weight"])


@pytest.mark.slow
def test_a_trainers_checkpoint_of_oat_is_imported(tmp_path: Path) -> None:
    state = network("oat").state_dict()
    kept = {"state_dict": {f"model.{key}": value for key, value in state.items()}, "epoch": 3, "global_step": 10}
    torch.save(kept, tmp_path / "oat.pt")
    found = import_weights("oat", tmp_path / "oat.pt", tmp_path / "weights")
    assert found.missing == found.unexpected == []
    weights = read_weights(tmp_path / "weights" / "oat.safetensors")
    assert set(weights.arrays) == set(state)
