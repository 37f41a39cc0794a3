"""Rotation: pairs turn by their angle, and only distances matter."""

import torch

from shared.lm.config import DecoderConfig, RopeScaling
from shared.lm.rope import frequencies, rotation


def config(scaling=None, d=8, theta=100.0):
    return DecoderConfig("llama", 8, 12, 2, 4, 2, d, 8, 64, 1e-5, tied=True, rope_theta=theta, rope_scaling=scaling)


def test_linear_scaling_slows_all_and_a_table_each():
    plain = frequencies(config())
    torch.testing.assert_close(frequencies(config(RopeScaling("linear", factor=4.0))), plain / 4)
    table = (1.0, 2.0, 4.0, 8.0)
    torch.testing.assert_close(frequencies(config(RopeScaling("table", table=table))), plain / torch.tensor(table))


def test_angles_are_float32_in_every_dtype():
    theta = frequencies(config())
    assert theta.dtype == torch.float32
    far = torch.tensor([60_001])
    narrow, wide = (rotation(theta, far, dtype)[0].flatten() for dtype in (torch.bfloat16, torch.float32))
    torch.testing.assert_close(narrow.float(), wide, atol=4e-3, rtol=0)
    assert rotation(theta, far, torch.float64)[0].dtype == torch.float64
