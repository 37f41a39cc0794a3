"""Few-bit matrices: rounding, packing, and the C++ product against float64 on ugly shapes."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save

from services.llm_longctx.kernels import backends
from services.llm_longctx.kernels.quantized_linear import PackedMatrix, multiply, pack, reference
from services.llm_longctx.serving.weight_format import load_weights
from services.llm_longctx.tests.conftest import native, write_folder
from shared.lm import bundled_models
from shared.lm.quantization import from_gguf_blocks, quantize

SHAPES = [(1, 1), (3, 31), (16, 32), (17, 33), (100, 64), (576, 96), (33, 257)]


def matrix(rows: int, columns: int, seed: int = 0) -> np.ndarray:
    made = np.random.default_rng(seed)
    out = made.standard_normal((rows, columns)).astype(np.float32) * made.exponential(1, (rows, 1)).astype(np.float32)
    out[rows // 2] = 0 if rows > 1 else out[rows // 2]
    return out


def product(x, packed):
    return multiply(x, [(packed, None)])[0]


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_packed_matrix_is_the_same_matrix(bits, shape):
    whole = quantize(matrix(*shape), bits)
    packed = pack(whole)
    np.testing.assert_array_equal(packed.unpack().dequantize(), whole.dequantize())
    assert PackedMatrix.of(packed.data, *shape).bits == bits


@pytest.mark.parametrize(("bits", "most"), [(8, 0.5), (4, 1.02)])
def test_rounding_errs_by_a_step_at_most(bits, most):
    wide = matrix(40, 70)
    found = quantize(wide, bits)
    step = np.repeat(found.scale.astype(np.float32), 32, 1)[:, :70]
    error = np.abs(found.dequantize() - wide)
    # In 4 bits an extreme may be cut off, for the sake of the others: the mean error is what must stay small.
    assert (error <= most * step + 1e-3 * np.abs(wide) + 1e-6).mean() > 0.97
    assert np.square(error).mean() <= np.square(step).mean() / 12 * 1.05


@native
@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("rows", [1, 2, 5, 8, 19, 64])
def test_products_agree_with_the_reference(bits, shape, rows):
    packed = pack(quantize(matrix(*shape), bits))
    x = torch.randn(rows, shape[1], generator=torch.Generator().manual_seed(1))
    out, exact = product(x, packed), reference(x, packed)
    # x is rounded to 8 bits per group: its error is half a 127th of the group's largest entry, at random.
    size = x.abs().amax() / 127 / 12**0.5 * torch.from_numpy(packed.unpack().dequantize()).norm(dim=1).double()
    assert (out.double() - exact).abs().le(5 * size + 1e-4).all()


@native
@pytest.mark.parametrize("bits", [8, 4])
def test_products_are_exact_where_eight_bits_hold_x(bits):
    packed = pack(quantize(matrix(50, 77), bits))
    x = torch.randint(-127, 128, (3, 77), generator=torch.Generator().manual_seed(2)).float()
    x[:, ::32] = 127  # every group's largest, so that its scale is 1
    exact = reference(x, packed)
    torch.testing.assert_close(product(x, packed).double(), exact, rtol=1e-5, atol=2e-4 * float(exact.abs().max()))


@native
@pytest.mark.parametrize("bits", [8, 4])
def test_a_row_does_not_depend_on_others(bits):
    packed = pack(quantize(matrix(90, 200), bits))
    x = torch.randn(41, 200, generator=torch.Generator().manual_seed(3))
    together = product(x, packed)
    for at in range(41):  # one row at a time, and then many in tiles
        assert torch.equal(product(x[at : at + 1], packed)[0], together[at])


@native
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [1, 7, 30])
def test_layers_of_both_widths_have_biases_and_gates(dtype, rows):
    packed = [pack(quantize(matrix(70, 96, seed), bits)) for seed, bits in ((1, 4), (2, 8))]
    x = torch.randn(2, rows, 96, generator=torch.Generator().manual_seed(4)).to(dtype)
    bias = torch.linspace(-1, 1, 70).to(dtype)
    first, second = multiply(x, [(packed[0], bias), (packed[1], None)])
    gated, *rest = multiply(x, [(packed[0], bias), (packed[1], None)], gated=True)
    assert first.dtype == gated.dtype == dtype
    assert not rest
    exact = [reference(x.flatten(0, 1), one).view(2, rows, 70) for one in packed]
    exact[0] = exact[0] + bias.double()
    near = {"rtol": 0.02, "atol": 0.02 * float(exact[0].abs().max())}
    torch.testing.assert_close(first.double(), exact[0], **near)
    torch.testing.assert_close(second.double(), exact[1], **near)
    opened = torch.nn.functional.silu(exact[0]) * exact[1]
    torch.testing.assert_close(gated.double(), opened, rtol=0.05, atol=0.02 * float(opened.abs().max()))


@native
@pytest.mark.parametrize("rows", [1, 9, 140])
@pytest.mark.parametrize("K", [31, 96, 200])
def test_a_norm_before_the_products_is_computed_in_float32(rows, K):
    packed = pack(quantize(matrix(70, K), 4))
    x = 5 * torch.randn(rows, K, generator=torch.Generator().manual_seed(5))
    weight = torch.linspace(-1, 2, K).bfloat16()
    normed = torch.nn.functional.rms_norm(x, (K,), None, 1e-5) * (weight.float() + 1)
    found = multiply(x, [(packed, None)], (weight, 1e-5, 1.0), wide=True)[0]
    near = product(normed, packed)
    assert found.dtype == torch.float32
    # A value that lies between two bytes may be rounded to the other one.
    assert (found - near).norm() <= 2e-3 * near.norm()
    assert torch.equal(multiply(x, [(packed, None)], (weight, 1e-5, 1.0))[0], found.bfloat16())


def test_gguf_blocks_are_read_as_gguf_reads_them():
    gguf = pytest.importorskip("gguf")
    wide = matrix(6, 96)
    for name in ("Q4_0", "Q4_1", "Q8_0"):
        kind = gguf.GGMLQuantizationType[name]
        blocks = gguf.quantize(wide, kind)
        found = from_gguf_blocks(name, blocks, 96)
        np.testing.assert_allclose(found.dequantize(), gguf.dequantize(blocks, kind), rtol=1e-6, atol=1e-7)
    assert from_gguf_blocks("Q6_K", blocks, 96) is None


@pytest.mark.parametrize(("array", "bits"), [(np.zeros((2, 2), np.float32), 3), (np.zeros(3, np.float32), 4)])
def test_other_formats_are_refused(array, bits):
    with pytest.raises(ValueError, match="8 or 4 bits"):
        quantize(array, bits)


def test_bytes_of_another_matrix_are_refused():
    packed = pack(quantize(matrix(16, 32), 4))
    with pytest.raises(ValueError, match="no packed matrix of 33 x 32"):
        PackedMatrix.of(packed.data, 33, 32)
    if "cpu_ext" in backends():
        with pytest.raises(ValueError, match="rows of 31"):
            product(torch.zeros(1, 31), packed)


@native
def test_packed_files_stay_mapped_and_begin_at_a_line(tmp_path):
    folder = write_folder(tmp_path / "model")
    first = load_weights(folder, tmp_path, "q4").packed
    mapped = load_weights(folder, tmp_path, "q4").packed
    (file,) = tmp_path.glob("lm/*/packed.safetensors")
    assert str(file) in Path("/proc/self/maps").read_text("utf8")
    assert next(iter(mapped.values())).data.data_ptr() % 64 == 0
    other = tmp_path / "older"
    other.write_bytes(save({key: matrix.data.clone() for key, matrix in mapped.items()}))  # as older versions wrote it
    other.replace(file)
    older = load_weights(folder, tmp_path, "q4").packed
    for key, matrix in first.items():
        assert torch.equal(matrix.data, mapped[key].data)
        assert torch.equal(matrix.data, older[key].data)


@native
def test_what_an_installation_packed_is_not_packed_again(tmp_path, monkeypatch):
    folder, cache = write_folder(tmp_path / "model"), tmp_path / "cache"
    load_weights(folder, tmp_path / "made", "q4")
    monkeypatch.setattr(bundled_models, "INSTALLED", tmp_path / "made")
    found = load_weights(folder, cache, "q4").packed
    assert not cache.exists()
    assert str(tmp_path / "made") in Path("/proc/self/maps").read_text("utf8")
    other = load_weights(folder, cache, "q8").packed
    assert len([*cache.glob("lm/*/packed.safetensors")]) == 1
    assert found.keys() == other.keys()
