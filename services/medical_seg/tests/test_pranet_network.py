"""The PraNet network: its parts, and its values against golden ones."""

import zlib

import numpy as np
import pytest
import torch

from fovea.errors import InvalidOption
from shared.registry import network
from tests.harness.hypothesis_profiles import in_depth

SLIM = {"width": 0.25, "decoder": 16, "classifier": False}


def test_without_reverse_attention_only_the_maps_below_it_differ(fill, picture):
    with_it, without = (fill(network("pranet", **SLIM, reverse=reverse)) for reverse in (True, False))
    with torch.no_grad():
        ours, ablated = with_it(picture(1, 64, 64)), without(picture(1, 64, 64))
    assert torch.equal(ours[0], ablated[0])
    assert not torch.allclose(ours[1], ablated[1], atol=1e-3)


@pytest.mark.parametrize(("classes", "still"), [(1, (0, 1, 2)), (2, ())])
def test_v2_sums_four_foreground_maps_and_its_attention_source_matters_with_two_classes(fill, picture, classes, still):
    net, x = fill(network("pranet-v2", classes=classes, **SLIM)), picture(1, 64, 64)
    with torch.no_grad():
        before = net(x)
        torch.testing.assert_close(net.prediction(x), sum(before[:4]))
        net.agg1.register_forward_hook(lambda _m, _i, out: tuple(o + torch.randn_like(o) for o in out))
        after = net(x)
    assert before[0].shape == (1, classes, 64, 64)
    assert [torch.equal(before[i], after[i]) for i in range(4)] == [i in still for i in range(4)]


LATERAL = [f"lateral_map_{level}" for level in (5, 4, 3, 2)]
DUAL = [f"p{level}_{side}" for side in ("fg", "bg") for level in (2, 3, 4, 5)]


@pytest.fixture(scope="module")
def pranet(fill):
    return fill(network("pranet"))


def assert_map_matches(found: torch.Tensor, golden: dict, name: str) -> None:
    top, left = (found.shape[-2] - 64) // 2, (found.shape[-1] - 64) // 2
    np.testing.assert_allclose(found[..., ::4, ::4].numpy(), golden[f"{name}.strided4"], rtol=0, atol=5e-5)
    centre = found[..., top : top + 64, left : left + 64].numpy()
    np.testing.assert_allclose(centre, golden[f"{name}.center64"], rtol=0, atol=5e-5)


@pytest.mark.parametrize(("name", "file"), [("pranet", "pranet.keys.json"), ("pranet-v2", "pranet_v2.keys.json")])
def test_state_dict_has_the_official_names_order_shapes_and_types(golden, name, file):
    state = network(name).state_dict()
    assert [[k, list(v.shape), str(v.dtype).removeprefix("torch.")] for k, v in state.items()] == golden(file)


@pytest.mark.parametrize(("height", "width"), in_depth([(352, 352), (256, 320)], [(256, 320)]))
def test_pranet_maps_equal_the_published_models(golden, pranet, picture, height, width):
    expected, x = golden(f"pranet_1x3x{height}x{width}.arrays"), picture(1, height, width)
    assert zlib.crc32(x.contiguous().numpy().tobytes()) == expected["input_crc32"]
    with torch.no_grad():
        maps = pranet(x)
    for name, found in zip(LATERAL, maps, strict=True):
        assert_map_matches(found, expected, name)


@torch.no_grad()
def test_pranet_v2_maps_equal_the_published_models(golden, fill, picture):
    maps, expected = fill(network("pranet-v2"))(picture(1, 256, 320)), golden("pranet_v2_1x3x256x320.arrays")
    for name, found in zip(DUAL, maps, strict=True):
        assert_map_matches(found, expected, name)


def test_sizes_off_the_grid_are_refused_and_the_classifier_is_the_only_part_without_a_gradient(golden):
    net = network("pranet", width=0.25, decoder=16)
    for height, width in ((33, 64), (64, 40)):
        with pytest.raises(InvalidOption, match=f"{height}x{width}"):
            net(torch.zeros(1, 3, height, width))
    net(torch.randn(2, 3, 64, 64))[-1].sum().backward()
    assert {n for n, p in net.named_parameters() if p.grad is None} == {"resnet.fc.weight", "resnet.fc.bias"}
