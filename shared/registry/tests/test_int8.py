"""Kernels as bytes come back within half a step of their scale, and everything else as it was."""

import numpy as np

from shared.registry.int8 import pack_kernels, unpack_kernels
from shared.registry.weights import Manifest, NetworkSpec, read_weights, write_weights


def arrays() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    scales = np.logspace(-3, 1, 16, dtype=np.float32)[:, None, None, None]
    kernel = rng.normal(size=(16, 8, 3, 3)).astype(np.float32) * scales
    kernel[3] = 0
    return {"kernel": kernel, "bias": rng.normal(size=16).astype(np.float32), "count": np.array(7)}


def test_each_output_is_within_half_a_step_of_its_own_scale():
    given = arrays()
    found = unpack_kernels(pack_kernels(given))
    step = np.abs(given["kernel"]).reshape(16, -1).max(axis=1) / 127
    apart = np.abs(found["kernel"] - given["kernel"]).reshape(16, -1).max(axis=1)
    assert (apart <= 0.55 * step + 1e-7).all()
    assert found.keys() == given.keys()
    assert np.array_equal(found["bias"], given["bias"])


def test_familiar_features_are_kept_apart_from_the_network(tmp_path):
    manifest = Manifest(name="net", origin="trained", network=NetworkSpec(name="net"), constants={"novelty": 1.5})
    write_weights(tmp_path, {**arrays(), "familiar.mean": np.ones(4, np.float32)}, manifest)
    found = read_weights(tmp_path / "net.safetensors")
    assert found.arrays.keys() == arrays().keys()
    assert (found.familiar.keys(), found.manifest.constants) == ({"familiar.mean"}, {"novelty": 1.5})
