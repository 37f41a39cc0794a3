"""Official checkpoints of vision networks come in key by key, and reach another machine through a real S3 server."""

import functools
import os
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from fovea.errors import InvalidOption, Malformed
from fovea_planning.models import object_attention
from fovea_recipes.training import checkpoint_import
from fovea_recipes.training import cli as training_cli
from fovea_recipes.training.checkpoint_import import import_weights, layouts
from shared.registry import network, networks
from shared.registry.imported_weights import fetch_weights
from shared.registry.weights import read_weights
from shared.settings import Settings
from shared.storage import ObjectStore, open_object_store
from shared.storage.tests.conftest import s3_variables  # noqa: F401  # fixture

NETWORKS = tuple(name for name, build in networks().items() if ".models." in build.__module__)
"""Every network that has a file of its own in a service's room of models."""


@pytest.fixture(autouse=True)
def _tables_are_made_once(monkeypatch):
    """An import builds the gaze network several times."""
    monkeypatch.setattr(object_attention, "fitted_positions", functools.cache(object_attention.fitted_positions))


def layout_names() -> list[Any]:
    """The first official layout of small networks; before a release, first and last ones of all networks."""
    small = {"fasternet-t0", "hieraedgenet", "pointer-net", "pranet-lite", "rrformer-discriminator", "tiny-induction"}
    return [
        pytest.param(
            name, layout, id="-".join([name, *map(str, layout.values())]),
            marks=[pytest.mark.release] * (at > 0 or name not in small),
        )
        for name in NETWORKS
        for at, layout in enumerate(layouts(name)[:1] + layouts(name)[1:][-1:])
    ]  # fmt: skip


@pytest.mark.parametrize(("name", "layout"), layout_names())
def test_a_checkpoint_of_an_official_layout_is_imported_key_by_key(tmp_path, name, layout):
    torch.manual_seed(1)
    state = {key: value.contiguous().clone() for key, value in network(name, **layout).state_dict().items()}
    save_file(state, tmp_path / "official.safetensors")
    found = import_weights(name, tmp_path / "official.safetensors", tmp_path / "weights")
    assert found.notes["missing"] == found.notes["unexpected"] == []
    stored = read_weights(tmp_path / "weights" / f"{name}.safetensors").arrays
    told = {key for key in state if not key.endswith("num_batches_tracked")}
    assert stored.keys() - {key for key in state if key not in told} == told
    assert all(torch.equal(torch.from_numpy(stored[key]).to(state[key].dtype), state[key]) for key in told)
    spec = found.network
    with torch.device("meta"):  # names alone
        assert network(spec.name, **spec.config).state_dict().keys() == state.keys()


def test_an_official_checkpoint_is_imported_with_its_classes_and_names(tmp_path):
    net = network("yolo9tr", classes=3, size="l")
    net.names = ["D00", "D10", "D20"]
    torch.save({"model": net.half(), "epoch": 7}, tmp_path / "best.pt")
    imported = import_weights("yolo9tr", tmp_path / "best.pt", tmp_path)
    assert (imported.network.config, imported.data["names"]) == ({"size": "l", "classes": 3}, "D00,D10,D20")
    assert imported.notes == {"missing": [], "unexpected": []}
    stored = read_weights(tmp_path / "yolo9tr.safetensors")
    key = "model.35.cv4.0.2.bias"
    assert torch.equal(torch.from_numpy(stored.arrays[key]), net.float().state_dict()[key])


def test_fovea_import_reaches_another_folder(tmp_path, monkeypatch, s3_variables):  # noqa: F811
    monkeypatch.setattr(checkpoint_import, "network", lambda _name: nn.Linear(2, 2))
    monkeypatch.setattr(checkpoint_import, "layouts", lambda _name: ({},))
    workstation = Settings(data_dir=tmp_path / "workstation", object_store="s3://fovea/import")
    monkeypatch.setattr(training_cli, "settings", lambda: workstation)
    monkeypatch.setattr(os, "umask", lambda _mask: 0)  # this process goes on to other tests
    for name, value in s3_variables.items():
        monkeypatch.setenv(name, value)
    save_file({"weight": torch.full((2, 2), 0.5), "bias": torch.zeros(2)}, tmp_path / "toy.safetensors")
    training_cli.import_checkpoint("toy", tmp_path / "toy.safetensors")
    training_cli.publish_weights(ObjectStore.open((tmp_path / "own").as_uri()), tmp_path, "toy")
    assert not (tmp_path / "own").exists(), "a folder is its own copy"
    fetch_weights(open_object_store(workstation), tmp_path / "pod")
    found = read_weights(tmp_path / "pod" / "toy.safetensors")
    assert (found.manifest.origin, found.arrays["weight"].sum()) == ("imported", 2.0)


def test_a_gaze_network_is_imported_with_its_shelf_and_its_position_table(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint_import, "layouts", lambda name: layouts(name)[:2])
    table = np.random.default_rng(0).standard_normal((11, 86))
    net = network("oat", grid=(2, 11), position_table=table)
    state = {f"model.{key}": value for key, value in net.state_dict().items()}
    torch.save({"state_dict": state, "epoch": 3, "hyper_parameters": {"lr": 0.1}}, tmp_path / "last.ckpt")
    np.save(tmp_path / "pe.npy", table)
    bare = import_weights("oat", tmp_path / "last.ckpt", tmp_path)
    assert (bare.network.config, bare.notes["fitted"]) == ({"grid": (2, 11)}, ["position_table"])
    found = import_weights("oat", tmp_path / "last.ckpt", tmp_path, tmp_path / "pe.npy")
    assert found.notes == {"missing": [], "unexpected": []}
    stored = read_weights(tmp_path / "oat.safetensors").manifest.network
    assert torch.equal(network(stored.name, **stored.config).table, net.table)
    monkeypatch.setattr(checkpoint_import, "layouts", lambda name: layouts(name)[:1])  # what is refused needs no more
    for wrong, error in ((table[:5], InvalidOption), (table * np.nan, InvalidOption), (np.array([{}]), Malformed)):
        np.save(tmp_path / "wrong.npy", wrong)
        with pytest.raises(error):
            import_weights("oat", tmp_path / "last.ckpt", tmp_path, tmp_path / "wrong.npy")
    with pytest.raises(InvalidOption, match="no position table"):
        import_weights("pranet", tmp_path / "last.ckpt", tmp_path, tmp_path / "pe.npy")
