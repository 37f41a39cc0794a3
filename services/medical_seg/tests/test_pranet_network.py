"""Properties of the networks at any weights: sizes, the attention's limits, the traps of the papers."""

import pytest
import torch

from fovea.errors import InvalidOption
from shared.registry import network

SLIM = {"width": 0.25, "decoder": 16, "classifier": False}


@pytest.fixture
def slim(fill):
    return fill(network("pranet", **SLIM))


@pytest.mark.parametrize(("height", "width"), [(33, 64), (64, 40)])
def test_sizes_off_the_grid_are_refused_with_the_size(slim, height, width):
    with pytest.raises(InvalidOption, match=f"{height}x{width}"):
        slim(torch.zeros(1, 3, height, width))


def test_where_the_map_above_is_certain_of_a_polyp_the_features_are_silenced(slim):
    """A = 0 leaves the path of the biases plus the crop, whatever the features show."""
    certain, unsure = torch.full((1, 1, 2, 2), 100.0), torch.zeros(1, 1, 2, 2)
    some, other = torch.randn(2, 1, 512, 2, 2)
    with torch.no_grad():
        silenced = slim._attend(4, some, certain)
        assert torch.equal(silenced, slim._attend(4, other, certain))
        assert torch.equal(silenced, slim._refine(4, torch.zeros_like(some))[0] + certain)
        assert not torch.equal(slim._attend(4, some, unsure), slim._attend(4, other, unsure))


def test_without_reverse_attention_only_the_attention_differs(fill, picture):
    with_it, without = (fill(network("pranet", **SLIM, reverse=reverse)) for reverse in (True, False))
    with torch.no_grad():
        ours, ablated = with_it(picture(1, 64, 64)), without(picture(1, 64, 64))
    assert torch.equal(ours[0], ablated[0])
    assert not torch.allclose(ours[1], ablated[1], atol=1e-3)


def coarse_maps_disturbed(net, x):
    """All maps with and without a shift of the source of the first attention."""
    with torch.no_grad():
        before = net(x)
        handle = net.agg1.register_forward_hook(lambda _m, _i, out: tuple(o + torch.randn_like(o) for o in out))
        after = net(x)
        handle.remove()
    return before, after


def test_with_one_class_the_v2_attention_source_changes_nothing(fill, picture):
    before, after = coarse_maps_disturbed(fill(network("pranet-v2", classes=1, **SLIM)), picture(1, 64, 64))
    assert all(torch.equal(before[i], after[i]) for i in (0, 1, 2))
    assert not torch.equal(before[3], after[3])


def test_with_two_classes_the_v2_attention_source_matters(fill, picture):
    before, after = coarse_maps_disturbed(fill(network("pranet-v2", classes=2, **SLIM)), picture(1, 64, 64))
    assert before[0].shape == (1, 2, 64, 64)
    assert all(not torch.equal(before[i], after[i]) for i in (0, 1, 2))


def test_the_v2_prediction_sums_the_four_foreground_maps(fill, picture):
    net = fill(network("pranet-v2", **SLIM))
    with torch.no_grad():
        maps = net(picture(1, 64, 64))
        torch.testing.assert_close(net.prediction(picture(1, 64, 64)), sum(maps[:4]))
