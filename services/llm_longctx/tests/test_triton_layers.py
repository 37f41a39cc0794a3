"""The Triton kernels of linear layers, norms, rotation, gates, merges and sampling against plain ones, interpreted."""

import importlib

import numpy as np
import pytest
import torch

from services.llm_longctx.kernels import layer_ops, merge
from services.llm_longctx.kernels.fp8_linear import pack_fp8
from services.llm_longctx.kernels.fp8_linear import reference as fp8_reference
from services.llm_longctx.kernels.merge_lse.reference import softmax_of_all
from services.llm_longctx.kernels.quantized_linear import pack
from services.llm_longctx.kernels.quantized_linear import reference as multiply_reference
from services.llm_longctx.kernels.sampling import SamplingRows, sample
from services.llm_longctx.kernels.sampling.reference import keep_likeliest
from services.llm_longctx.kernels.sampling.rows import RowSettings
from services.llm_longctx.tests.interpreted import KERNELS
from shared.lm.blocks import OffsetRMSNorm
from shared.lm.quantization import quantize
from shared.lm.rope import rotate, rotation

pytestmark = pytest.mark.usefixtures("interpreter")


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


@pytest.mark.parametrize(
    ("rows", "columns", "batch", "parts", "dtype"),
    [
        (65, 33, 3, 1, torch.float32),  # a partial block and a partial line of columns
        (100, 300, 19, 3, torch.bfloat16),  # parts of unequal length
        (1, 1, 1, None, torch.float32),
        (70, 1100, 70, 2, torch.bfloat16),  # two programs of rows
    ],
)
def test_fp8_products_agree_with_the_reference(rows, columns, batch, parts, dtype):
    kernel = importlib.import_module(f"{KERNELS}fp8_linear.triton")
    torch.manual_seed(columns)
    sizes = torch.logspace(-3, 2, max(rows, batch))[:, None]
    weights, biases = [sizes[:rows] * torch.randn(rows, columns) for _ in range(2)], torch.randn(2, rows).to(dtype)
    x = (sizes[:batch].flip(0) * torch.randn(batch, columns)).to(dtype)
    x[0] = 0
    gate, up = (pack_fp8(one) for one in weights)
    wanted = [fp8_reference(x, one) + bias.double() for one, bias in zip((gate, up), biases, strict=True)]
    layers = list(zip((gate, up), biases, strict=True))
    whole = (x.double() @ weights[0].double().mT).abs().amax() + 1e-9
    assert (fp8_reference(x, gate) - x.double() @ weights[0].double().mT).abs().max() < 0.07 * whole
    for found, one in zip(kernel.multiply(x, layers, parts=parts), wanted, strict=True):
        assert found.dtype == dtype
        assert (found.double() - one).abs().max() < (1e-5 if dtype == torch.float32 else 1e-2) * one.abs().max()
    (found,) = kernel.multiply(x, layers, gated=True, parts=parts)
    opened = torch.nn.functional.silu(wanted[0]) * wanted[1]
    assert (found.double() - opened).abs().max() < 1e-2 * opened.abs().max()


@pytest.mark.parametrize(
    ("shape", "dtype"), [((3, 5, 33), torch.float32), ((2, 576), torch.bfloat16), ((1, 1), torch.float32)]
)
def test_norms_agree_with_torch(shape, dtype):
    kernel = importlib.import_module(f"{KERNELS}decoder_ops.triton")
    torch.manual_seed(shape[-1])
    x, weight = torch.randn(shape) * 100, torch.randn(shape[-1]).to(dtype)
    wanted = x / (x.square().mean(-1, keepdim=True) + 1e-3).sqrt() * (1.5 + weight.float())
    found = kernel.normalize(x, weight, 1e-3, 1.5)
    assert found.dtype == dtype
    assert (found.float() - wanted).abs().max() < (1e-5 if dtype == torch.float32 else 2e-2) * wanted.abs().max()


@pytest.mark.parametrize(("batches", "d"), [(1, 64), (2, 80), (2, 6)])
def test_rotations_agree_with_torch(batches, d):
    kernel = importlib.import_module(f"{KERNELS}decoder_ops.triton")
    torch.manual_seed(d)
    q, k = torch.randn(2, 3, 6, d), torch.randn(2, 3, 2, d)
    theta = 1 / 10 ** (torch.arange(0, d, 2) / d)
    turn = rotation(theta, torch.tensor([[5, 6, 7], [100, 101, 0]])[:batches], torch.float32)
    for found, wanted in zip(kernel.rotate(q, k, turn), (rotate(q, turn), rotate(k, turn)), strict=True):
        assert torch.allclose(found, wanted, atol=1e-6)


def test_gates_agree_with_torch():
    kernel = importlib.import_module(f"{KERNELS}decoder_ops.triton")
    opening, opened = torch.randn(2, 3, 700) * 20
    wanted = torch.nn.functional.silu(opening) * opened
    assert torch.allclose(kernel.open_gate(opening, opened), wanted, rtol=1e-5)


def test_layers_multiply_with_their_few_bit_matrices_up_to_a_few_rows():
    torch.manual_seed(0)
    layers = [torch.nn.Linear(96, 40, bias=i == 0) for i in range(2)]
    few = {layer: packed(40, 96, 4) for layer in layers}
    ops, plain = layer_ops("triton", torch.float32, "cpu", few), layer_ops("triton", torch.float32, "cpu")
    x = torch.randn(1, 5, 96, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        norm = OffsetRMSNorm(96, 1e-5)
        norm.weight.uniform_(-0.5, 0.5)
        normed = norm(x)
        biases = [0 if layer.bias is None else layer.bias for layer in layers]
        wanted = [multiply_reference(normed, few[one]) + bias for one, bias in zip(layers, biases, strict=True)]
        for found, one in zip(ops.products(x, layers, norm), wanted, strict=True):
            assert torch.allclose(found.double(), one, rtol=1e-4, atol=1e-3)
        opened = torch.nn.functional.silu(wanted[0]) * wanted[1]
        assert torch.allclose(ops.swiglu(x, *layers, norm=norm).double(), opened, rtol=1e-3, atol=1e-3)
        whole = [layer(normed) for layer in layers]
        assert torch.allclose(plain.products(x, layers, norm)[1], whole[1], atol=1e-5)
        opened = torch.nn.functional.silu(whole[0]) * whole[1]
        assert torch.allclose(plain.swiglu(x, *layers, norm=norm), opened, atol=1e-5)
        many = x.repeat(1, 60, 1)
        assert torch.allclose(ops.products(many, layers)[0], layers[0](many), atol=1e-5)


@pytest.mark.parametrize("count", [2, 3, 6])
def test_merges_are_one_softmax(count):
    torch.manual_seed(count)
    logits, values = torch.randn(count, 5, 3, 7) * 20, torch.randn(count, 5, 3, 7, 24)
    logits[:, 0, 0] = -torch.inf  # a row that sees nothing in any part
    logits[1, 1] = -torch.inf
    parts = [softmax_of_all(one, held) for one, held in zip(logits, values, strict=True)]
    out, lse = merge(*((one.float(), logs.float()) for one, logs in parts), backend="triton")
    wanted, sums = softmax_of_all(torch.cat(list(logits), -1), torch.cat(list(values), -2))
    assert (out.double() - wanted).abs().max() < 1e-5
    assert torch.equal(lse.isneginf(), sums.isneginf())
    assert (lse.double() - sums)[~sums.isneginf()].abs().max() < 1e-4


LIMITS = [
    {}, {"temperature": 0.0}, {"temperature": 0.6, "top_k": 5}, {"temperature": 1.3, "top_p": 0.8},
    {"temperature": 0.9, "min_p": 0.1}, {"temperature": 2.0, "top_k": 12, "top_p": 0.7, "min_p": 0.01}, {"top_p": 0.0},
    {"top_k": 1},
]  # fmt: skip


def rows_of(limits: dict, shares) -> SamplingRows:
    return SamplingRows.of([RowSettings(**{"temperature": 1.0} | limits)._replace(share=share) for share in shares])


@pytest.mark.parametrize("backend", ["cpu_torch", "triton"])
@pytest.mark.parametrize("limits", LIMITS, ids=str)
def test_draws_are_those_of_the_oracle(limits, backend, monkeypatch):
    monkeypatch.setattr(importlib.import_module(f"{KERNELS}sampling.triton"), "_BLOCK", 32)  # a row is several blocks
    torch.manual_seed(len(str(limits)))
    logits = torch.randn(12, 77) * 3
    logits[0] = 1.5  # all alike: those with lower numbers come first
    logits[1, ::2] = -torch.inf
    logits[2] = logits[2].round()
    rows = rows_of(limits, np.random.default_rng(len(str(limits))).random(12))
    assert torch.equal(sample(logits, rows, backend=backend), sample(logits, rows, backend="reference"))


def test_the_first_and_the_last_share_take_tokens_that_are_left():
    logits = torch.tensor([[1.0, 4.0, 2.0, 3.0, -torch.inf]])
    for share, wanted in ((0.0, 1), (1 - 2**-53, 3)):  # in float32 the share is 1
        assert sample(logits, rows_of({"top_k": 2}, [share]), backend="triton").tolist() == [wanted]


def test_the_oracle_draws_from_the_distribution():
    logits = torch.randn(20, generator=torch.Generator().manual_seed(3)) * 2
    limits = {"temperature": 0.8, "top_k": 6, "top_p": 0.9, "min_p": 0.02}
    rows = rows_of(limits, (np.arange(3000) + 0.5) / 3000)
    found = torch.bincount(sample(logits.expand(3000, 20), rows, backend="reference"), minlength=20)
    kept = keep_likeliest(logits.double(), RowSettings(**limits))
    assert 1 < int((kept > 0).sum()) <= 6
    assert (found / 3000 - kept / kept.sum()).abs().max() < 1e-3
