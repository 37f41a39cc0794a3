"""The decoder's parts against plain arithmetic: which corners align, what is multiplied, what is joined."""

import pytest
import torch
import torch.nn.functional as F

from services.medical_seg.models.partial_decoder import PartialDecoder, ReceptiveField
from services.medical_seg.models.polyp_network import rescale
from services.medical_seg.models.res2net import Bottle2neck, Res2Net


@pytest.fixture
def levels():
    """Features at 1/32, 1/16 and 1/8 of a 64x96 picture."""
    draw = torch.Generator().manual_seed(1)
    return tuple(torch.randn(2, 4, 2 * k, 3 * k, generator=draw) for k in (1, 2, 4))


@pytest.fixture
def decoder(fill):
    return fill(PartialDecoder(4))


def up(x):
    return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True)


def test_the_coarse_map_is_at_an_eighth_with_one_channel(decoder, levels):
    (out,) = decoder(*levels)
    assert out.shape == (2, 1, 8, 12)


def test_the_partial_decoder_is_the_formula_of_the_paper(decoder, levels):
    x1, x2, x3 = levels
    d = decoder
    x2_1 = d.conv_upsample1(up(x1)) * x2
    x3_1 = d.conv_upsample2(up(up(x1))) * d.conv_upsample3(up(x2)) * x3
    x2_2 = d.conv_concat2(torch.cat((x2_1, d.conv_upsample4(up(x1))), 1))
    x3_2 = d.conv_concat3(torch.cat((x3_1, d.conv_upsample5(up(x2_2))), 1))
    torch.testing.assert_close(d(*levels)[0], d.conv5(d.conv4(x3_2)))


def test_the_last_convolution_is_the_only_one_with_a_bias(decoder):
    biased = [n for n, m in decoder.named_modules() if isinstance(m, torch.nn.Conv2d) and m.bias is not None]
    assert biased == ["conv5"]


def test_each_head_has_a_map_of_its_own(fill, levels):
    two = fill(PartialDecoder(4, ("conv5_fg", "conv5_bg"), classes=3))
    fg, bg = two(*levels)
    assert fg.shape == bg.shape == (2, 3, 8, 12)
    assert not torch.equal(fg, bg)


def test_corners_align_in_the_decoder_and_not_around_the_attention():
    ramp = torch.tensor([0.0, 1.0]).view(1, 1, 1, 2)
    torch.testing.assert_close(up(ramp)[0, 0, 0], torch.tensor([0, 1 / 3, 2 / 3, 1]))
    torch.testing.assert_close(rescale(ramp, 2)[0, 0, 0], torch.tensor([0, 0.25, 0.75, 1]))


def test_shrinking_to_a_quarter_reads_the_two_middle_pixels_and_blurs_nothing():
    row = torch.arange(8.0).expand(1, 1, 8, 8)
    torch.testing.assert_close(rescale(row, 0.25)[0, 0, 0], torch.tensor([1.5, 5.5]))


@pytest.mark.parametrize(("index", "reach"), [(1, 3), (2, 5), (3, 7)])
def test_each_branch_sees_as_far_as_its_dilation(index, reach):
    field = ReceptiveField(1, 1).eval()
    branch = getattr(field, f"branch{index}")
    for module in branch.modules():
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.ones_(module.weight)
    x = torch.zeros(1, 1, 41, 41)
    x[0, 0, 20, 20] = 1
    seen = branch(x)[0, 0] > 0
    half = reach // 2 + reach
    assert seen[20].nonzero().flatten().tolist()[0] == 20 - half
    assert seen[:, 20].nonzero().flatten().tolist()[-1] == 20 + half


def test_the_receptive_field_adds_its_shortcut_before_the_only_activation(fill):
    field = fill(ReceptiveField(6, 4))
    x = torch.randn(1, 6, 9, 9, generator=torch.Generator().manual_seed(2))
    joined = torch.cat([b(x) for b in (field.branch0, field.branch1, field.branch2, field.branch3)], 1)
    assert joined.min() < 0
    torch.testing.assert_close(field(x), F.relu(field.conv_cat(joined) + field.conv_res(x)))


@pytest.mark.parametrize(("planes", "width"), [(64, 26), (128, 52), (256, 104), (512, 208), (16, 6), (4, 1)])
def test_the_width_of_a_group_is_rounded_down(planes, width):
    assert Bottle2neck(8, planes, first=True).convs[0].weight.shape == (width, width, 3, 3)


def test_the_backbone_halves_the_picture_five_times():
    net = Res2Net(0.125).eval()
    features = net(torch.zeros(1, 3, 64, 96))
    assert [tuple(f.shape[1:]) for f in features] == [(32, 16, 24), (64, 8, 12), (128, 4, 6), (256, 2, 3)]
    assert net.channels == (32, 64, 128, 256)


def test_no_convolution_of_the_backbone_has_a_bias():
    convolutions = [m for m in Res2Net(0.125).modules() if isinstance(m, torch.nn.Conv2d)]
    assert len(convolutions) == 3 + 16 * 5 + 4
    assert all(m.bias is None for m in convolutions)


def test_batch_norms_have_the_published_constants():
    norms = [m for m in Res2Net(0.125).modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert {(m.eps, m.momentum) for m in norms} == {(1e-5, 0.1)}
