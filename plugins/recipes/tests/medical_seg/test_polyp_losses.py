"""Losses, metrics and one training step against the published ones, and properties of the structure losses."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fovea_recipes.medical_seg.losses import deep_supervision, dual_supervision, structure_loss
from fovea_recipes.medical_seg.metrics import segmentation_scores
from plugins.recipes.tests.golden_files import read
from services.medical_seg.tests.conftest import GOLDEN
from shared.registry import network
from tests.golden import read_golden


def test_losses_of_the_maps_equal_the_published_ones(fill, picture, mask):
    expected, truth = read_golden(GOLDEN / "pranet_1x3x256x320.arrays"), mask(1, 256, 320)
    with torch.no_grad():
        maps = fill(network("pranet"))(picture(1, 256, 320))
    for form, key in (("released", "structure_loss_official"), ("paper", "structure_loss_reduction_none")):
        losses = [structure_loss(found, truth, form).item() for found in maps]
        np.testing.assert_allclose(losses, expected[key], rtol=1e-5, atol=1e-5)


def test_one_training_step_has_the_golden_losses_gradients_and_statistics(fill, picture, mask):
    net, expected = fill(network("pranet")).train(), read("pranet_trainstep_2x3x96x96.arrays")
    truth = mask(2, 96, 96)
    losses = [structure_loss(found, truth, "released") for found in net(picture(2, 96, 96))]
    torch.stack(losses).sum().backward()
    np.testing.assert_allclose([loss.item() for loss in losses], expected["losses_5432"], rtol=1e-4)
    parameters = dict(net.named_parameters())
    norms = [parameters[name].grad.norm().item() for name in read("pranet_trainstep_grad_names.json")]
    # Biases in front of another batch norm have gradient zero; what is left of it there is rounding.
    np.testing.assert_allclose(norms, expected["grad_l2"], rtol=1e-2, atol=1e-6)
    state = net.state_dict()
    for key in (key for key in expected if key.startswith("buf:")):
        np.testing.assert_allclose(state[key[4:]].numpy(), expected[key], rtol=1e-3, atol=1e-6)


def test_metrics_equal_the_toolbox_on_every_case():
    pairs, cases = read("polyp_metrics.arrays"), read("polyp_metrics.json")["cases"]
    assert len(cases) == 6
    for prediction, truth, expected in zip(pairs["pred_u8"], pairs["gt"], cases, strict=True):
        scores = segmentation_scores(prediction, truth)
        assert scores.keys() == expected.keys()
        for key, value in expected.items():
            assert scores[key] == pytest.approx(value, abs=1e-6, nan_ok=True), key


@pytest.fixture
def disc():
    rows, columns = torch.meshgrid(torch.arange(64), torch.arange(64), indexing="ij")
    return ((rows - 30) ** 2 + (columns - 34) ** 2 < 144).float()[None, None]


def test_deep_supervision_is_the_sum_over_maps_and_dual_wants_background_elsewhere(disc):
    maps = [torch.full_like(disc, value) for value in (-1.0, 0.0, 1.0, 2.0)]
    torch.testing.assert_close(deep_supervision(maps, disc), sum(structure_loss(m, disc) for m in maps))
    good = [(2 * disc - 1) * 9] * 4
    assert dual_supervision([*good, *[-m for m in good]], disc) < dual_supervision([*good, *good], disc)


@given(st.integers(0, 2**31), st.floats(-60, 60))
def test_losses_are_finite_and_never_negative(seed, scale):
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(2, 1, 16, 16, generator=generator)
    logits = scale * torch.randn(2, 1, 16, 16, generator=generator)
    for form in ("paper", "released"):
        loss = structure_loss(logits, mask, form)
        assert torch.isfinite(loss)
        assert loss >= 0
