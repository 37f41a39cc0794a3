"""Figures measured before weights are written are those of the file."""

import numpy as np
import pytest
import torch
from torch import nn

from fovea_recipes.training.publish import _round, arrays_of
from shared.registry.weights import Manifest, NetworkSpec, read_weights, write_weights


@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_a_network_is_rounded_to_exactly_what_is_stored(tmp_path, dtype):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(8, 16, 3), nn.BatchNorm2d(16), nn.Conv2d(16, 4, 1))
    before = arrays_of(network)["0.weight"].copy()
    _round(network, dtype)
    write_weights(
        tmp_path,
        arrays_of(network),
        Manifest(name="net", origin="trained", network=NetworkSpec(name="net"), dtype=dtype),
    )
    stored = read_weights(tmp_path / "net.safetensors").arrays
    assert not np.array_equal(stored["0.weight"], before)
    for key, array in arrays_of(network).items():
        np.testing.assert_array_equal(array, stored[key], err_msg=key)
