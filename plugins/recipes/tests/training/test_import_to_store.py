"""Weights that `fovea import` stores on one machine are served by another machine, through a real S3 server."""

import os
import subprocess
import sys

import torch
from safetensors.torch import save_file
from torch import nn

from fovea_recipes.training import checkpoint_import
from fovea_recipes.training import cli as training_cli
from shared.settings import Settings, environment
from shared.storage.tests.s3_server import run_s3_server

READ = """
import sys
from pathlib import Path
from shared.registry.imported_weights import fetch_weights
from shared.registry.weights import read_weights
from shared.settings import settings
from shared.storage import open_object_store
fetch_weights(open_object_store(settings()), settings().weights_dir)
weights = read_weights(settings().weights_dir / "toy.safetensors")
print(weights.manifest.origin, float(weights.arrays["weight"].sum()))
"""


def test_fovea_import_reaches_a_process_with_another_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint_import, "network", lambda _name: nn.Linear(2, 2))
    monkeypatch.setattr(checkpoint_import, "layouts", lambda _name: ({},))
    workstation = Settings(data_dir=tmp_path / "workstation", object_store="s3://fovea/import")
    monkeypatch.setattr(training_cli, "settings", lambda: workstation)
    monkeypatch.setattr(os, "umask", lambda _mask: 0)  # this process goes on to other tests
    save_file({"weight": torch.full((2, 2), 0.5), "bias": torch.zeros(2)}, tmp_path / "toy.safetensors")
    with run_s3_server() as variables:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        training_cli.import_checkpoint("toy", tmp_path / "toy.safetensors")
        told = environment(FOVEA_DATA_DIR=str(tmp_path / "pod"), FOVEA_OBJECT_STORE="s3://fovea/import")
        found = subprocess.run([sys.executable, "-c", READ], env=told, capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["imported", "2.0"]
