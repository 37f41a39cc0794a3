"""What holds for the networks at any weights: sizes, batches, the attention's limits, the traps of the papers."""

import pytest
import torch

from services.medical_seg.models.partial_decoder import BasicConv, ReceptiveField
from services.medical_seg.models.res2net import Bottle2neck, Res2Net
from shared.errors import InvalidOption
from shared.registry import network, networks

SLIM = {"width": 0.25, "decoder": 16, "classifier": False}


@pytest.fixture
def slim(fill):
    return fill(network("pranet", **SLIM))


@pytest.mark.parametrize(
    ("name", "config", "parameters"),
    [
        ("pranet", {}, 32_547_319),
        ("pranet", {"classifier": False}, 30_498_319),
        ("pranet", SLIM, 2_060_027),
        ("pranet-v2", {"classes": 1}, 32_548_842),
    ],
)
def test_parameter_counts_are_those_of_the_spec(name, config, parameters):
    assert sum(p.numel() for p in network(name, **config).parameters()) == parameters


def test_both_networks_are_found_by_name():
    assert {"pranet", "pranet-v2"} <= networks().keys()


@pytest.mark.parametrize(("name", "count"), [("pranet", 4), ("pranet-v2", 8)])
@pytest.mark.parametrize(("height", "width"), [(32, 32), (64, 96)])
def test_every_map_has_the_size_of_the_picture(name, count, height, width):
    net = network(name, **SLIM).eval()
    maps = net(torch.randn(2, 3, height, width))
    assert [tuple(m.shape) for m in maps] == [(2, 1, height, width)] * count


@pytest.mark.parametrize(("height", "width"), [(33, 64), (64, 40)])
def test_sizes_off_the_grid_are_refused_with_the_size(slim, height, width):
    with pytest.raises(InvalidOption, match=f"{height}x{width}"):
        slim(torch.zeros(1, 3, height, width))


@pytest.mark.parametrize("name", ["pranet", "pranet-v2"])
def test_a_batch_equals_its_singles(fill, picture, name):
    net, x = fill(network(name, **SLIM)), picture(3, 64, 96)
    with torch.no_grad():
        together = torch.stack(net(x))
        alone = torch.cat([torch.stack(net(x[i : i + 1])) for i in range(3)], dim=1)
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)


def test_the_prediction_is_the_last_map(slim, picture):
    with torch.no_grad():
        assert torch.equal(slim.prediction(picture(1, 64, 64)), slim(picture(1, 64, 64))[3])


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
    net = fill(network("pranet-v2", classes=1, **SLIM))
    before, after = coarse_maps_disturbed(net, picture(1, 64, 64))
    assert all(torch.equal(before[i], after[i]) for i in (0, 1, 2))
    assert not torch.equal(before[3], after[3])


def test_with_two_classes_the_v2_attention_source_matters(fill, picture):
    net = fill(network("pranet-v2", classes=2, **SLIM))
    before, after = coarse_maps_disturbed(net, picture(1, 64, 64))
    assert before[0].shape == (1, 2, 64, 64)
    assert all(not torch.equal(before[i], after[i]) for i in (0, 1, 2))


def test_the_v2_prediction_sums_the_four_foreground_maps(fill, picture):
    net = fill(network("pranet-v2", **SLIM))
    with torch.no_grad():
        maps = net(picture(1, 64, 64))
        torch.testing.assert_close(net.prediction(picture(1, 64, 64)), sum(maps[:4]))


def test_a_stage_block_pools_its_last_group_even_at_stride_one():
    block = Bottle2neck(64, 64, 1, first=True).eval()
    x = torch.zeros(1, 104, 5, 5)
    x[:, -1, 2, 2] = 9.0
    block.conv1, block.bn1, block.conv3, block.bn3 = (torch.nn.Identity() for _ in range(4))
    block.downsample = torch.nn.Identity()
    added = block(x)[:, -1] - x[:, -1]
    torch.testing.assert_close(added[:, 1:4, 1:4], torch.ones(1, 3, 3))


def test_a_normal_block_hands_each_rung_to_the_next():
    block = Bottle2neck(256, 64).eval()
    with torch.no_grad():
        x = torch.randn(1, 256, 4, 4).requires_grad_()
        ladder = [block.convs[i] for i in range(3)]
    seen = []
    for conv in ladder:
        conv.register_forward_pre_hook(lambda _m, args: seen.append(args[0]))
    groups = block.relu(block.bn1(block.conv1(x))).chunk(4, dim=1)
    block(x)
    assert torch.allclose(seen[0], groups[0])
    assert torch.allclose(seen[1], groups[1] + block.relu(block.bns[0](block.convs[0](groups[0]))))


def test_the_shortcut_pools_odd_sizes_up():
    assert Res2Net(0.25, classifier=False)(torch.zeros(1, 3, 72, 72))[2].shape[-2:] == (5, 5)


def test_basic_convolutions_have_no_activation():
    conv = BasicConv(1, 1, 1).eval()
    torch.nn.init.constant_(conv.conv.weight, 1.0)
    assert conv(torch.full((1, 1, 1, 1), -3.0)).item() == pytest.approx(-3, abs=1e-4)


def test_a_receptive_field_block_keeps_the_size_and_is_not_negative():
    out = ReceptiveField(8, 4).eval()(torch.randn(1, 8, 9, 7))
    assert out.shape == (1, 4, 9, 7)
    assert out.min() >= 0
