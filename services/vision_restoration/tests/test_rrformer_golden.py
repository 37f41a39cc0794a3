"""RRFormer, its tower and its discriminator against the published models' behaviour: layout and outputs."""

import zlib

import numpy as np
import pytest
import torch

from shared.registry import network

KEYS = {
    "rrformer": "rrformer.keys.json",
    "vgg19-features": "rrformer.vgg19_features.keys.json",
    "rrformer-discriminator": "rrformer.netD.keys.json",
}


@pytest.fixture(scope="module")
def tower(fill):
    return fill(network("vgg19-features"), "vgg:")


@pytest.fixture(scope="module")
def rrformer(fill):
    return fill(network("rrformer"))


@pytest.mark.parametrize("name", KEYS)
def test_state_dict_has_the_official_names_order_shapes_and_types(golden, name):
    state = network(name).state_dict()
    rows = [[k, list(v.shape), str(v.dtype).removeprefix("torch.")] for k, v in state.items()]
    assert rows == golden(KEYS[name])


@pytest.mark.parametrize("size", [(96, 160), (70, 104)])
def test_both_variants_equal_the_published_models(golden, rrformer, tower, picture, size):
    expected, x = golden(f"rrformer_1x3x{size[0]}x{size[1]}.arrays"), picture(1, *size)
    assert zlib.crc32(x.numpy().tobytes()) == expected["input_crc32"]
    with torch.no_grad():
        levels = tower(x)
        for variant in ("released", "paper"):
            rrformer.variant = variant
            found = rrformer(x, levels)
            assert found.shape == x.shape
            np.testing.assert_allclose(found[..., ::4, ::4], expected[f"{variant}.strided4"], rtol=0, atol=1e-4)
        half = rrformer.conv3(rrformer.conv2(rrformer.embed(x, levels)))
    np.testing.assert_allclose(half[:, ::15, ::4, ::4], expected["conv3.strided4"], rtol=0, atol=1e-4)
