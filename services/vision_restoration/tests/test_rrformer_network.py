"""The RRFormer network: its parts, and its values against golden ones."""

import zlib

import numpy as np
import pytest
import torch

from fovea.errors import InvalidOption
from shared.registry import network


def test_unknown_variants_and_small_sides_are_refused_and_a_short_tower_has_the_levels_of_the_whole_one(picture):
    with pytest.raises(InvalidOption, match="no variant 'best'"):
        network("rrformer", variant="best", features=16, body=16, heads=2, groups=1, blocks=1)
    net = network("rrformer", features=16, body=16, heads=2, groups=1, blocks=1, levels=(4, 4, 4, 4, 4))
    tower = network("vgg19-features", widths=(4, 4, 4, 4, 4))
    with pytest.raises(InvalidOption, match="31×64", check=lambda e: e.field == "image"):
        net(picture(1, 31, 64), tower(picture(1, 31, 64)))
    whole = network("vgg19-features", widths=(2, 2, 2, 2, 2))
    short = network("vgg19-features", widths=(2, 2, 2, 2, 2), whole=False)
    short.load_state_dict({key: value for key, value in whole.state_dict().items() if key in short.state_dict()})
    assert len(whole.state_dict()) - len(short.state_dict()) == 6
    for one, other in zip(whole(picture(1, 32, 32)), short(picture(1, 32, 32)), strict=True):
        assert torch.equal(one, other)


KEYS = {"rrformer": "keys", "vgg19-features": "vgg19_features.keys", "rrformer-discriminator": "netD.keys"}


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
    assert rows == golden(f"rrformer.{KEYS[name]}.json")


@pytest.mark.parametrize("size", [pytest.param((96, 160), marks=pytest.mark.release), (70, 104)])
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
