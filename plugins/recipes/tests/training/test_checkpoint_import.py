"""Checkpoints of others: read without running code, and imported."""

import hashlib
import pickle
import re
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from fovea.errors import InvalidOption, Malformed, TooLarge, UnsupportedMedia
from fovea_recipes.training import checkpoint_import
from fovea_recipes.training.safe_unpickler import read_unpickled
from plugins.recipes.tests.training.conftest import Line
from shared.registry.weights import read_weights


class Net(nn.Module):
    """One layer that predicts, one that no prediction touches."""

    idle = ("fc.",)

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 3)
        self.bn = nn.BatchNorm2d(2)
        self.fc = nn.Linear(2, 2)


@pytest.fixture(autouse=True)
def _toy(monkeypatch):
    monkeypatch.setattr(checkpoint_import, "network", lambda _name: Net())
    monkeypatch.setattr(checkpoint_import, "layouts", lambda _name: ({},))


@pytest.fixture
def state():
    torch.manual_seed(3)
    return {key: torch.rand_like(value.float()).to(value.dtype) for key, value in Net().state_dict().items()}


@pytest.fixture
def out(tmp_path):
    return tmp_path / "weights"


@pytest.fixture
def bring(tmp_path, out):
    """Saves something with torch, and imports it."""

    def save_and_import(thing):
        torch.save(thing, tmp_path / "a.pth")
        return checkpoint_import.import_weights("toy", tmp_path / "a.pth", out)

    return save_and_import


class Bomb:
    """Writes a file when it is unpickled by anyone who imports what it names."""

    def __init__(self, path) -> None:
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


@pytest.mark.parametrize("suffix", [".pth", ".ckpt", ".safetensors", ".PTH"])
def test_both_formats_are_stored_exactly(tmp_path, out, state, suffix):
    file = tmp_path / f"official{suffix}"
    (save_file if "safe" in suffix else torch.save)(state, file)
    imported = checkpoint_import.import_weights("toy", file, out)
    found = read_weights(out / "toy.safetensors")
    assert torch.equal(torch.from_numpy(found.arrays["conv.weight"]), state["conv.weight"])
    assert imported.notes == {"missing": [], "unexpected": []}
    assert (found.manifest.origin, found.manifest.dtype) == ("imported", "float32")
    assert found.manifest.data["source_sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()


def test_code_in_a_checkpoint_is_refused_or_left_out_and_not_run(tmp_path, out, state, bring):
    trap = tmp_path / "trap"
    with pytest.raises(Malformed, match="run code"):
        bring(state | {"extra": Bomb(trap)})
    (tmp_path / "b.pth").write_bytes(pickle.dumps({"conv.weight": Bomb(trap)}))
    with pytest.raises(Malformed, match="run code"):
        checkpoint_import.import_weights("toy", tmp_path / "b.pth", out)
    assert not trap.exists()
    assert not out.exists()
    net = Small()
    net.trap = Bomb(trap)  # type: ignore[assignment]  # what an attacker would put there
    assert "model.0.weight" in read_unpickled(_saved(tmp_path / "net.pt", {"model": net, "more": Bomb(trap)}))
    assert not trap.exists()


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04 half a zip", pickle.dumps({"a": 1})])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_broken_files_are_malformed_not_a_crash(tmp_path, out, content, suffix):
    file = tmp_path / f"a{suffix}"
    file.write_bytes(content)
    with pytest.raises(Malformed):
        checkpoint_import.import_weights("toy", file, out)
    with pytest.raises(Malformed, match="broken"):
        read_unpickled(file)


def test_a_file_of_another_kind_too_large_or_unpacking_to_a_large_one_is_refused_before_it_is_read(tmp_path, out):
    file = tmp_path / "a.pth"
    file.write_bytes(b"\0" * (2 * 2**20))
    with pytest.raises(TooLarge, match="2,097,152"):
        checkpoint_import.import_weights("toy", file, out)
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", b"\0" * (8 * 2**20))
    assert file.stat().st_size < 2**20
    with pytest.raises(TooLarge):
        checkpoint_import.import_weights("toy", file, out)
    (tmp_path / "a.h5").write_bytes(b"x")
    with pytest.raises(UnsupportedMedia, match="safetensors"):
        checkpoint_import.import_weights("toy", tmp_path / "a.h5", out)


def test_what_no_prediction_needs_may_be_missing_and_the_layout_that_fits_is_taken(out, state, bring, monkeypatch):
    for key in ("fc.weight", "fc.bias", "bn.num_batches_tracked"):
        del state[key]
    imported = bring(state | {"more": torch.zeros(1)})
    assert set(imported.notes["missing"]) == {"fc.weight", "fc.bias", "bn.num_batches_tracked"}
    assert imported.notes["unexpected"] == ["more"]
    assert set(read_weights(out / "toy.safetensors").arrays) == set(Net().state_dict())
    assert bring(state).sha256 == bring(state).sha256
    monkeypatch.setattr(checkpoint_import, "network", lambda _name, **config: Line(**config))
    monkeypatch.setattr(checkpoint_import, "layouts", lambda _name: ({"width": 2}, {"width": 5}))
    for width in (2, 5):
        assert bring(Line(width).state_dict()).network.config == {"width": width}
    with pytest.raises(InvalidOption, match=r"norm.bias is \[2\], \[1\] is needed"):
        bring(Line(5).state_dict() | {"norm.bias": torch.zeros(2)})
    monkeypatch.setattr(checkpoint_import, "network", lambda _name: nn.Linear())
    with pytest.raises(InvalidOption, match="official layout"):
        bring(state)


@pytest.mark.parametrize(("change", "told"), [
    (lambda state: {"network": state, "epoch": 19}, "state dict"),
    (lambda state: state | {"conv.bias": torch.full((2,), torch.nan)}, "not finite"),
    (lambda state: state | {"conv.weight": torch.zeros(2, 1, 5, 5)}, r"\[2, 1, 5, 5\], \[2, 1, 3, 3\] is needed"),
    (lambda state: {k: v for k, v in state.items() if "var" not in k}, r"lacks 1 of 9 tensors, bn\.running_var"),
    (lambda _: {"encoder.weight": torch.zeros(1)}, r"conv\.weight(?s:.*)encoder\.weight"),
])  # fmt: skip
def test_what_does_not_fit_is_refused_and_named(out, state, bring, change, told):
    with pytest.raises((InvalidOption, Malformed)) as refused:
        bring(change(state))
    assert re.search(told, f"{refused.value.detail} {refused.value.hint}")
    assert not out.exists()


@pytest.mark.parametrize("wrap", [
    lambda state: {"state_dict": state, "epoch": 300, "optimizer": {"lr": 0.1}},
    lambda state: {"model": state, "epoch": 300, "optimizer": {"lr": 0.1}},
    lambda state: {f"module.{key}": value for key, value in state.items()},
], ids=["state_dict", "model", "module."])  # fmt: skip
def test_a_state_dict_beside_notes_of_its_training_or_of_a_wrapped_module_is_found(out, state, bring, wrap):
    assert bring(wrap(state)).notes["unexpected"] == []
    arrays = read_weights(out / "toy.safetensors").arrays
    assert all(torch.equal(torch.from_numpy(arrays[key]).view(value.shape), value) for key, value in state.items())


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
        self.register_buffer("kept", torch.arange(3))
        self.register_buffer("left", torch.arange(3), persistent=False)
        self.names = {0: "D00", 1: "D10"}


def _saved(file: Path, thing: Any) -> Path:
    torch.save(thing, file)
    return file


def test_a_model_object_comes_out_as_its_state_dict_averaged_weights_win_and_views_stay_in_their_storage(tmp_path):
    net = Small()
    held = read_unpickled(_saved(tmp_path / "net.pt", {"epoch": 3, "model": net.half(), "ema": None}))
    expected = net.float().state_dict()
    assert list(held) == list(expected)
    assert all(torch.equal(held[key], value) for key, value in expected.items())
    assert (held["model.0.weight"].dtype, held.names) == (torch.float32, ("D00", "D10"))
    live, average = Small(), Small()
    held = read_unpickled(_saved(tmp_path / "net.pt", {"model": live, "ema": average}))
    assert torch.equal(held["model.0.weight"], average.state_dict()["model.0.weight"])
    file = _saved(tmp_path / "net.pt", {"model": Small()})
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
