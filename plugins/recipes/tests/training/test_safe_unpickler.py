"""A pickled model gives up its tensors and runs nothing."""

import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from fovea.errors import Malformed
from fovea_recipes.training.safe_unpickler import read_unpickled


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
        self.register_buffer("kept", torch.arange(3))
        self.register_buffer("left", torch.arange(3), persistent=False)
        self.names = {0: "D00", 1: "D10"}


class Trap:
    """Runs a command when it is unpickled by anyone who imports what it names."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.file}",)


def _saved(file: Path, thing: Any) -> Path:
    torch.save(thing, file)
    return file


def test_a_model_object_comes_out_as_its_state_dict(tmp_path):
    net = Net()
    held = read_unpickled(_saved(tmp_path / "net.pt", {"epoch": 3, "model": net.half(), "ema": None}))
    expected = net.float().state_dict()
    assert list(held) == list(expected)
    assert all(torch.equal(held[key], value) for key, value in expected.items())
    assert (held["model.0.weight"].dtype, held.names) == (torch.float32, ("D00", "D10"))


def test_averaged_weights_win(tmp_path):
    live, average = Net(), Net()
    held = read_unpickled(_saved(tmp_path / "net.pt", {"model": live, "ema": average}))
    assert torch.equal(held["model.0.weight"], average.state_dict()["model.0.weight"])


def test_nothing_in_the_file_is_run(tmp_path):
    sprung = tmp_path / "sprung"
    net = Net()
    net.trap = Trap(sprung)  # type: ignore[assignment]  # what an attacker would put there
    assert "model.0.weight" in read_unpickled(_saved(tmp_path / "net.pt", {"model": net, "more": Trap(sprung)}))
    assert not sprung.exists()


def test_a_view_outside_of_its_storage_is_refused(tmp_path):
    file = _saved(tmp_path / "net.pt", {"model": Net()})
    with zipfile.ZipFile(file) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(file, "w") as archive:
        for name, raw in entries.items():
            archive.writestr(name, raw[:4] if "/data/" in name else raw)
    with pytest.raises(Malformed, match="broken"):
        read_unpickled(file)


@pytest.mark.parametrize("thing", [{"model": 3}, [1, 2], {"a": torch.zeros(2)}])
def test_a_file_without_a_model_is_told_so(tmp_path, thing):
    with pytest.raises(Malformed, match="holds no model"):
        read_unpickled(_saved(tmp_path / "thing.pt", thing))


@pytest.mark.parametrize("raw", [b"", b"PK\x03\x04 not", pickle.dumps({"a": 1})])
def test_broken_files_are_told_so(tmp_path, raw):
    file = tmp_path / "broken.pt"
    file.write_bytes(raw)
    with pytest.raises(Malformed, match="broken"):
        read_unpickled(file)
