"""Rotation: pairs turn by their angle, and only distances matter."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shared.lm.config import DecoderConfig, RopeScaling
from shared.lm.rope import frequencies, rotate, rotation


def config(scaling=None, d=8, theta=100.0):
    return DecoderConfig("llama", 8, 12, 2, 4, 2, d, 8, 64, 1e-5, tied=True, rope_theta=theta, rope_scaling=scaling)


def turned(x, position, scaling=None):
    turn = rotation(frequencies(config(scaling, x.shape[-1])), torch.tensor([position]), x.dtype)
    return rotate(x.view(1, 1, 1, -1), turn).flatten()


@pytest.mark.parametrize("d", [2, 6, 8, 24])
def test_entry_i_turns_with_entry_i_plus_half(d):
    x = torch.randn(d, generator=torch.Generator().manual_seed(d), dtype=torch.float64)
    position, found = 5, turned(x, 5)
    for i in range(d // 2):
        angle = position * 100.0 ** (-2 * i / d)
        a, b = float(x[i]), float(x[i + d // 2])
        assert float(found[i]) == pytest.approx(a * math.cos(angle) - b * math.sin(angle), abs=1e-6)
        assert float(found[i + d // 2]) == pytest.approx(b * math.cos(angle) + a * math.sin(angle), abs=1e-6)


@given(st.integers(0, 500), st.integers(0, 500), st.integers(0, 500))
def test_products_depend_on_the_distance_alone(m, n, shift):
    q, k = torch.randn(2, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    here, there = turned(q, m) @ turned(k, n), turned(q, m + shift) @ turned(k, n + shift)
    assert float(here) == pytest.approx(float(there), abs=1e-3)


def test_rotation_keeps_lengths_and_zero_and_position_zero():
    x = torch.randn(8)
    assert torch.equal(turned(x, 0), x)
    assert torch.equal(turned(torch.zeros(8), 9), torch.zeros(8))
    assert float(turned(x, 77).norm()) == pytest.approx(float(x.norm()), rel=1e-5)


def test_linear_scaling_slows_all_and_a_table_each():
    plain = frequencies(config())
    torch.testing.assert_close(frequencies(config(RopeScaling("linear", factor=4.0))), plain / 4)
    table = (1.0, 2.0, 4.0, 8.0)
    torch.testing.assert_close(frequencies(config(RopeScaling("table", table=table))), plain / torch.tensor(table))


def test_llama_3_slows_long_waves_only():
    how = RopeScaling("llama3", factor=8.0, low=1.0, high=4.0, original=32)
    plain, scaled = frequencies(config(d=32)), frequencies(config(how, d=32))
    wave = 2 * math.pi / plain
    assert torch.equal(scaled[wave < 8], plain[wave < 8])
    torch.testing.assert_close(scaled[wave > 32], plain[wave > 32] / 8)
    between = (wave > 8) & (wave < 32)
    assert between.any()
    assert ((scaled < plain) & (scaled > plain / 8))[between].all()
    assert (scaled.diff() < 0).all(), "slower with every pair"


def test_angles_are_float32_in_every_dtype():
    theta = frequencies(config())
    assert theta.dtype == torch.float32
    far = torch.tensor([60_001])
    narrow, wide = (rotation(theta, far, dtype)[0].flatten() for dtype in (torch.bfloat16, torch.float32))
    torch.testing.assert_close(narrow.float(), wide, atol=4e-3, rtol=0)
    assert rotation(theta, far, torch.float64)[0].dtype == torch.float64
