"""Both networks against the published models' behaviour: layout and outputs."""

import zlib

import numpy as np
import pytest
import torch

from shared.registry import network

LATERAL = [f"lateral_map_{level}" for level in (5, 4, 3, 2)]
DUAL = [f"p{level}_{side}" for side in ("fg", "bg") for level in (2, 3, 4, 5)]


@pytest.fixture(scope="module")
def pranet(fill):
    return fill(network("pranet"))


def crc(tensor: torch.Tensor) -> int:
    return zlib.crc32(tensor.contiguous().numpy().tobytes())


def assert_map_matches(found: torch.Tensor, golden: dict, name: str) -> None:
    top, left = (found.shape[-2] - 64) // 2, (found.shape[-1] - 64) // 2
    np.testing.assert_allclose(found[..., ::4, ::4].numpy(), golden[f"{name}.strided4"], rtol=0, atol=5e-5)
    centre = found[..., top : top + 64, left : left + 64].numpy()
    np.testing.assert_allclose(centre, golden[f"{name}.center64"], rtol=0, atol=5e-5)


@pytest.mark.parametrize(("name", "file"), [("pranet", "pranet.keys.json"), ("pranet-v2", "pranet_v2.keys.json")])
def test_state_dict_has_the_official_names_order_shapes_and_types(golden, name, file):
    state = network(name).state_dict()
    assert [[k, list(v.shape), str(v.dtype).removeprefix("torch.")] for k, v in state.items()] == golden(file)


@pytest.mark.parametrize(("height", "width"), [(352, 352), (256, 320)])
def test_pranet_maps_equal_the_published_models(golden, pranet, picture, height, width):
    expected, x = golden(f"pranet_1x3x{height}x{width}.arrays"), picture(1, height, width)
    assert crc(x) == expected["input_crc32"]
    with torch.no_grad():
        maps = pranet(x)
    for name, found in zip(LATERAL, maps, strict=True):
        assert_map_matches(found, expected, name)


def test_pranet_v2_maps_equal_the_published_models(golden, fill, picture):
    net, expected = fill(network("pranet-v2")), golden("pranet_v2_1x3x256x320.arrays")
    with torch.no_grad():
        maps = net(picture(1, 256, 320))
    for name, found in zip(DUAL, maps, strict=True):
        assert_map_matches(found, expected, name)


def test_the_classifier_is_the_only_part_without_a_gradient(golden):
    net = network("pranet", width=0.25, decoder=16)
    net(torch.randn(2, 3, 64, 64))[-1].sum().backward()
    assert {n for n, p in net.named_parameters() if p.grad is None} == {"resnet.fc.weight", "resnet.fc.bias"}
