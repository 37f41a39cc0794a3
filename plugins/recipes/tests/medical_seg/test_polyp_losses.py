"""The structure losses: their two forms, their limits, and the cheap way to their weights."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fovea_recipes.medical_seg.losses import deep_supervision, dual_supervision, structure_loss


@pytest.fixture
def disc():
    rows, columns = torch.meshgrid(torch.arange(64), torch.arange(64), indexing="ij")
    return ((rows - 30) ** 2 + (columns - 34) ** 2 < 144).float()[None, None]


def test_the_forms_agree_only_where_no_pixel_weighs_more(disc):
    flat = torch.zeros_like(disc)
    logits = torch.randn(disc.shape, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(structure_loss(logits, flat, "paper"), structure_loss(logits, flat, "released"))
    assert not torch.isclose(structure_loss(logits, disc, "paper"), structure_loss(logits, disc, "released"))


def test_deep_supervision_is_the_sum_over_maps(disc):
    maps = [torch.full_like(disc, value) for value in (-1.0, 0.0, 1.0, 2.0)]
    torch.testing.assert_close(deep_supervision(maps, disc), sum(structure_loss(m, disc) for m in maps))


def test_dual_supervision_wants_background_where_no_polyp_is(disc):
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
