"""Checkpoint files: whole or absent, without pickles, and with an optimiser that goes on as if never stopped."""

import pytest
import torch
from safetensors import SafetensorError
from torch import nn

from fovea_recipes.training import checkpoint
from fovea_recipes.training.checkpoint import flatten_optimizer, read_checkpoint, restore_optimizer, write_checkpoint

TENSORS = {"a/weight": torch.arange(6.0).view(2, 3), "a/count": torch.tensor(3), "b/weight": torch.zeros(0)}


def trained(seed: int = 0, steps: int = 3) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(seed)
    net = nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.1)
    for step in range(steps):
        stepped(net, optimizer, step)
    return net, optimizer


def stepped(net: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
    x = torch.randn(4, 3, generator=torch.Generator().manual_seed(step))
    optimizer.zero_grad()
    net(x).square().mean().backward()
    optimizer.step()


def test_tensors_and_state_come_back_as_they_were(tmp_path):
    state = {"step": 7, "best": 0.25, "scores": [[1, 0.5]], "knobs": {"name": "ü"}}
    write_checkpoint(tmp_path / "new" / "last.safetensors", TENSORS, state)
    tensors, found = read_checkpoint(tmp_path / "new" / "last.safetensors")
    assert found == state
    assert tensors.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert torch.equal(tensors[name], tensor)
        assert tensors[name].dtype == tensor.dtype


def test_tensors_in_another_memory_order_are_stored_by_value(tmp_path):
    x = torch.arange(24.0).view(1, 2, 3, 4).to(memory_format=torch.channels_last)
    write_checkpoint(tmp_path / "a.safetensors", {"x": x}, {})
    assert torch.equal(read_checkpoint(tmp_path / "a.safetensors")[0]["x"], x)


def test_a_crash_while_writing_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    path = tmp_path / "last.safetensors"
    write_checkpoint(path, TENSORS, {"step": 1})

    def crash(tensors, draft, metadata):
        draft.write_bytes(b"half a file")
        raise OSError("disk full")

    monkeypatch.setattr(checkpoint, "save_file", crash)
    with pytest.raises(OSError, match="disk full"):
        write_checkpoint(path, TENSORS, {"step": 2})
    assert read_checkpoint(path)[1] == {"step": 1}


def test_a_checkpoint_is_no_pickle(tmp_path):
    write_checkpoint(tmp_path / "last.safetensors", TENSORS, {})
    raw = (tmp_path / "last.safetensors").read_bytes()
    assert raw[8:9] == b"{"  # the header of safetensors, after its length
    (tmp_path / "pickle.safetensors").write_bytes(b"\x80\x04K\x01.")
    with pytest.raises(SafetensorError):
        read_checkpoint(tmp_path / "pickle.safetensors")


def test_a_restored_optimiser_goes_on_as_the_original():
    net, optimizer = trained()
    twin = nn.Linear(3, 2)
    twin.load_state_dict(net.state_dict())
    restored = torch.optim.AdamW(twin.parameters(), lr=0.1)
    restore_optimizer(restored, {name: tensor.clone() for name, tensor in flatten_optimizer(optimizer).items()})
    for step in range(3, 6):
        stepped(net, optimizer, step)
        stepped(twin, restored, step)
    assert torch.equal(net.weight, twin.weight)


def test_learning_rates_are_the_schedules_and_stay():
    _, optimizer = trained()
    other = torch.optim.AdamW(nn.Linear(3, 2).parameters(), lr=0.7)
    restore_optimizer(other, flatten_optimizer(optimizer))
    assert other.param_groups[0]["lr"] == 0.7
