"""The Triton kernels of linear layers, norms, rotation, gates, merges and sampling against plain ones, interpreted."""

from __future__ import annotations

import importlib
import sys

import numpy as np
import pytest
import torch

from services.llm_longctx.kernels import dispatch
from services.llm_longctx.kernels.quantized_linear import pack
from services.llm_longctx.kernels.quantized_linear import reference as multiply_reference
from shared.lm.quantization import quantize

triton = pytest.importorskip("triton", reason="triton is not installed: its wheels are for Linux")

KERNELS = "services.llm_longctx.kernels."


def forget() -> None:
    """A kernel's form is settled when its file is imported, and what is there when dispatch first looks."""
    for name in [name for name in sys.modules if name.startswith(KERNELS) and name.endswith(".triton")]:
        del sys.modules[name]
    for cached in (dispatch._chosen, dispatch._absent):
        cached.cache_clear()


@pytest.fixture(autouse=True)
def interpreter(monkeypatch):
    monkeypatch.setattr(triton.knobs.runtime, "interpret", True)
    forget()
    yield
    forget()


def packed(rows, columns, bits):
    made = np.random.default_rng(rows + columns)
    return pack(quantize(made.standard_normal((rows, columns)).astype(np.float32) * 3 - 1, bits))


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize(
    ("rows", "columns", "batch", "parts", "dtype"),
    [
        (17, 33, 3, 1, torch.float32),  # a partial strip and a partial group
        (100, 160, 19, 3, torch.float32),  # parts of unequal length
        (1, 1, 1, None, torch.float32),
        (70, 96, 5, 2, torch.bfloat16),
    ],
)
def test_packed_products_agree_with_the_reference(bits, rows, columns, batch, parts, dtype):
    kernel = importlib.import_module(f"{KERNELS}quantized_linear.triton")
    torch.manual_seed(columns)
    matrix, x, bias = packed(rows, columns, bits), torch.randn(batch, columns).to(dtype), torch.randn(rows).to(dtype)
    wanted = multiply_reference(x, matrix) + bias.double()
    found = kernel.multiply(x, [(matrix, bias), (matrix, None)], parts=parts)
    tolerance = (1e-5 if dtype == torch.float32 else 1e-2) * wanted.abs().max()
    assert found[0].dtype == dtype
    assert (found[0].double() - wanted).abs().max() < tolerance
    assert (found[1].double() - (wanted - bias.double())).abs().max() < tolerance


@pytest.mark.parametrize("parts", [1, 2])
def test_a_gate_opens_what_the_second_matrix_gives(parts):
    kernel = importlib.import_module(f"{KERNELS}quantized_linear.triton")
    torch.manual_seed(0)
    gate, up, x = packed(40, 70, 4), packed(40, 71, 4), torch.randn(2, 3, 70)
    up = type(up)(up.bits, up.rows, 70, up.data)
    biases = torch.randn(2, 40)
    opened = torch.nn.functional.silu(multiply_reference(x, gate) + biases[0].double())
    wanted = opened * (multiply_reference(torch.nn.functional.pad(x, (0, 1)), packed(40, 71, 4)) + biases[1].double())
    (found,) = kernel.multiply(x, [(gate, biases[0]), (up, biases[1])], gated=True, parts=parts)
    assert found.shape == (2, 3, 40)
    assert (found.double() - wanted).abs().max() < 1e-4 * wanted.abs().max()
