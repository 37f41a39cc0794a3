"""The Triton kernels against the oracles, in Triton's interpreter: few tokens, shapes that nothing divides."""

import importlib
import weakref
from itertools import product

import numpy as np
import pytest
import torch

from fovea.errors import NotReady
from services.llm_longctx import kernels
from services.llm_longctx.engine.device.graph_steps import BATCHES
from services.llm_longctx.kernels import layer_ops, merge
from services.llm_longctx.kernels.device import launch as launching
from services.llm_longctx.kernels.device.launch import Launch
from services.llm_longctx.kernels.device.shapes import MODELS
from services.llm_longctx.kernels.fp8_linear import pack_fp8
from services.llm_longctx.kernels.fp8_linear import reference as fp8_reference
from services.llm_longctx.kernels.merge_lse.reference import softmax_of_all
from services.llm_longctx.kernels.packed_pages.layout import CACHE_FORMATS, R4
from services.llm_longctx.kernels.packed_pages.reference import pack as pack_reference
from services.llm_longctx.kernels.quantized_linear import pack
from services.llm_longctx.kernels.quantized_linear import reference as multiply_reference
from services.llm_longctx.kernels.sampling import SamplingRows, sample
from services.llm_longctx.kernels.sampling.rows import RowSettings
from services.llm_longctx.tests.interpreted import KERNELS, interpreted
from services.llm_longctx.tests.test_kernels import DTYPES, LENGTHS, agree, in_pages, in_tensors, ragged
from shared.lm.blocks import OffsetRMSNorm
from shared.lm.quantization import quantize
from shared.lm.rope import rotate, rotation
from shared.telemetry import KERNEL_CALLS
from tests.harness.hypothesis_profiles import in_depth

pytest.importorskip("triton", reason="triton is not installed: its wheels are for Linux")
pytestmark = pytest.mark.usefixtures("interpreter")


def test_parts_of_a_long_problem_make_one_softmax():
    case = ragged(torch.float32, 32, 2)
    kernel = importlib.import_module(f"{KERNELS}decode.triton")
    for parts in (kernel.Parts(3, 100), kernel.Parts(5, 64)):
        agree(case[0], kernel.decode(*case, parts), in_tensors(*case, "reference"))


@pytest.mark.parametrize("size", [4, 64])
def test_pages_are_read_where_they_lie(size):
    *entries, weights = ragged(torch.float32, 24, 3)
    for logs in (weights, None):
        agree(entries[0], in_pages(*entries, logs, "triton", size), in_tensors(*entries, logs, "reference"))


def test_the_interpreter_runs_only_for_who_asks_and_calls_are_counted():
    assert "triton" in kernels.backends()
    (q, k), blocks = torch.randn(2, 1, 2, 4), kernels.BlockCsr.dense(1, 2, 2)
    before = calls("triton"), calls("cpu_ext") + calls("cpu_torch")
    kernels.block_sparse_prefill(q, k, k, blocks)
    assert (calls("triton"), calls("cpu_ext") + calls("cpu_torch")) == (before[0], before[1] + 1)
    kernels.block_sparse_prefill(q, k, k, blocks, backend="triton")
    assert calls("triton") == before[0] + 1
    with pytest.raises(NotReady, match="float64"):
        kernels.block_sparse_prefill(q.double(), k.double(), k.double(), blocks, backend="triton")


def calls(backend: str) -> float:
    samples = [one for metric in KERNEL_CALLS.collect() for one in metric.samples if one.name.endswith("_total")]
    return sum(one.value for one in samples if one.labels["backend"] == backend)


@pytest.mark.parametrize(("capability", "told"), [(None, "no GPU"), ((7, 5), "capability 7.5")])
def test_without_a_gpu_of_its_own_the_back_end_is_absent_and_says_what_to_try(capability, told, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: capability is not None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: capability)
    with interpreted(on=False):
        assert "triton" not in kernels.backends()
        with pytest.raises(NotReady, match=told, check=lambda e: "TRITON_INTERPRET" in e.hint):
            kernels.decode(torch.zeros(1, 1, 4), [torch.zeros(2, 4)], [torch.zeros(2, 4)], backend="triton")


class Recorded(dict):
    """A kernel whose launches are noted, by grid."""

    def __getitem__(self, grid):
        return lambda *arguments, **_: self.update({grid: arguments})


def test_counters_that_a_graph_holds_outlive_larger_ones_and_are_enough_for_any_step(monkeypatch):
    monkeypatch.setattr(launching, "_COUNTERS", {})
    held = weakref.ref(launching.counters(torch.device("cpu"), 1))
    most = max(-(-model.vocab // 64) for model in MODELS) * -(-max(BATCHES) // 16)  # programs of the logits' product
    assert len(held()) >= most > 1 << 14
    larger = launching.counters(torch.device("cpu"), 1 << 17)
    assert len(larger) == 1 << 17
    assert held() is not None
    assert launching.counters(torch.device("cpu"), 1) is larger, "all kernels of a stream share the newest"


def test_blocks_of_a_long_prompt_keep_a_grids_limits(monkeypatch):
    kernel, launched, n = importlib.import_module(f"{KERNELS}block_sparse_prefill.triton"), Recorded(), 70_000
    monkeypatch.setattr(kernel, "_launch", lambda *_: Launch(launched, {}))
    q = torch.zeros(1, n, 1)
    kernel.prefill(q, q, q, kernels.BlockCsr(torch.zeros(1, n + 1).int(), torch.zeros(0).int(), 1, 1))
    (grid,) = launched
    assert grid[0] > 2**16 > max(grid[1:])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("heads", "queries", "keys", "d", "sink", "window"), [
    ((4, 2), 40, 90, 24, 3, 20),  # a chunk whose sinks lie far from its windows
    ((3, 1), 65, 65, 64, 0, 7),  # no sinks
    ((2, 2), 1, 90, 80, 100, 1),  # one query, and more sinks than keys
    ((4, 4), 50, 50, 3, 5, 500),  # a window of more than all keys
])  # fmt: skip
def test_windows_agree_with_the_oracle(dtype, heads, queries, keys, d, sink, window):
    torch.manual_seed(keys)
    q, (k, v) = torch.randn(heads[0], queries, d).to(dtype), torch.randn(2, heads[1], keys, d).to(dtype)
    found, wanted = (kernels.window_prefill(q, k, v, sink, window, backend=name) for name in ("triton", "reference"))
    agree(q, found, wanted)


@pytest.mark.parametrize(("heads", "b", "keys", "d", "dtype"), [
    ((6, 2), 64, 200, 64, torch.bfloat16),
    ((3, 1), 70, 131, 24, torch.bfloat16),  # more queries than a program takes
    ((2, 2), 5, 330, 80, torch.float32), ((1, 1), 1, 1, 4, torch.float32),
])  # fmt: skip
def test_last_query_scores_agree_with_the_oracle(heads, b, keys, d, dtype):
    torch.manual_seed(keys)
    q, k = torch.randn(heads[0], b, d).to(dtype), torch.randn(heads[1], keys, d).to(dtype)
    wanted = kernels.last_query_scores(q, k, backend="reference")
    found = kernels.last_query_scores(q, k, backend="triton")
    for one, oracle in zip(found, wanted, strict=True):
        assert one.dtype == torch.float32
        assert (one.double() - oracle).abs().max() < 2e-5


def test_runs_whose_numbers_lie_on_the_device_are_the_same_runs():
    q, keys, values, weights = ragged(torch.bfloat16, 64, 3)
    n = torch.tensor(LENGTHS)
    start = n.cumsum(0) - n + torch.arange(len(n))  # an entry of nobody lies between two runs
    stores = torch.full((2, int(n.sum()) + len(n), 64), torch.nan, dtype=q.dtype)
    logs = torch.full((len(stores[0]),), torch.nan)
    for first, k, v, w in zip(start.tolist(), keys, values, weights, strict=True):
        stores[0, first : first + len(k)], stores[1, first : first + len(v)] = k, v
        logs[first : first + len(k)] = 0 if w is None else w
    wanted = in_tensors(q, keys, values, weights, "reference")
    runs = kernels.DeviceRuns(start, n, torch.tensor([w is not None for w in weights]), longest=1000)
    apart = torch.nn.functional.pad(stores[1], (0, 3))[:, :64]  # its rows are farther apart than those of the keys
    for backend in {"triton", "cpu_torch", "cpu_ext"} & set(kernels.backends()):
        for values in (stores[1], apart):
            agree(q, kernels.decode_device_runs(q, (stores[0], values, logs), runs, backend=backend), wanted)


SHAPES = ((80, 4, torch.bfloat16), (24, 1, torch.float32), (128, 3, torch.float32))
PAGES = [(*shape, bits) for shape in SHAPES for bits in CACHE_FORMATS]


@pytest.mark.parametrize(("d", "group", "dtype", "bits"), in_depth(PAGES, [PAGES[0], PAGES[2], *PAGES[4:8]]))
def test_packed_pages_are_read_as_they_lie(bits, d, group, dtype):
    torch.manual_seed(d)
    layout = kernels.PackedLayout(bits, d)
    whole = torch.randn(2, 9, 16, d) * torch.tensor([1.0, 30.0])[:, None, None, None] - 2
    pages = pack_reference(layout, *whole, torch.full((9,), 23))
    logs = torch.randn(9 * 16)
    start, n = np.array([0, 5, 144, 16, 100]), np.array([64, 90, 0, 1, 44])
    weighted = np.array([True, False, True, True, True])
    logs[96:100] = torch.nan  # of nobody
    exact = 1e-4 if layout.is_rotated else 6e-5  # of outputs up to 60
    q, tolerance = torch.randn(5, group, d).to(dtype), exact
    if dtype == torch.bfloat16:
        tolerance = 1.0 if layout.is_rotated else 0.5
    wanted = kernels.decode_packed(q, (layout, pages, logs), start, n, weighted, backend="reference")
    agree(q, kernels.decode_packed(q, (layout, pages, logs), start, n, weighted, backend="triton"), wanted, tolerance)
    kernel = importlib.import_module(f"{KERNELS}packed_pages.triton")
    runs = kernels.DeviceRuns(*(torch.from_numpy(x) for x in (start, n, weighted)), longest=90)
    agree(q, kernel.decode_packed(q, (layout, pages, logs), runs, kernel.Parts(4, 32)), wanted, tolerance)


def test_queries_of_empty_runs_are_rotated_without_reading_beyond_the_pages():
    layout = kernels.PackedLayout(R4, 24)
    pages = pack_reference(layout, *torch.randn(2, 2, 16, 24), torch.tensor([23, 5]))[:1]
    turn, x = importlib.import_module(f"{KERNELS}packed_pages.rotated.triton").turn, torch.randn(1, 1, 24)
    wanted, *found = (turn(layout, x, pages, torch.tensor([at]), back=False) for at in (0, 16, -1))
    assert all(torch.equal(one, wanted) for one in found)


def packed(rows, columns, bits):
    made = np.random.default_rng(rows + columns)
    return pack(quantize(made.standard_normal((rows, columns)).astype(np.float32) * 3 - 1, bits))


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize(("rows", "columns", "batch", "parts", "dtype"), [
    (17, 33, 3, 1, torch.float32),  # a partial strip and a partial group
    (100, 160, 19, 3, torch.float32),  # parts of unequal length
    (1, 1, 1, None, torch.float32), (70, 96, 5, 2, torch.bfloat16),
])  # fmt: skip
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


@pytest.mark.parametrize(("rows", "columns", "batch", "parts", "dtype"), [
    (65, 33, 3, 1, torch.float32),  # a partial block and a partial line of columns
    (100, 300, 19, 3, torch.bfloat16),  # parts of unequal length
    (1, 1, 1, None, torch.float32),
    (70, 150, 70, 2, torch.bfloat16),  # two programs of rows
])  # fmt: skip
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


DRAWS = list(product(LIMITS, ("cpu_torch", "triton")))
QUICK = [(limits, backend) for limits, backend in DRAWS if backend != "triton" or limits in (*LIMITS[:2], LIMITS[5])]


@pytest.mark.parametrize(("limits", "backend"), in_depth(DRAWS, QUICK), ids=str)
def test_draws_are_those_of_the_oracle(limits, backend, monkeypatch):
    monkeypatch.setattr(importlib.import_module(f"{KERNELS}sampling.triton"), "_BLOCK", 32)  # a row is several blocks
    torch.manual_seed(len(str(limits)))
    logits = torch.randn(4, 45) * 3
    logits[0] = 1.5  # all alike: those with lower numbers come first
    logits[1, ::2] = -torch.inf
    logits[2] = logits[2].round()
    rows = rows_of(limits, np.random.default_rng(len(str(limits))).random(4))
    assert torch.equal(sample(logits, rows, backend=backend), sample(logits, rows, backend="reference"))


def test_the_first_and_the_last_share_take_tokens_that_are_left(monkeypatch):
    monkeypatch.setattr(importlib.import_module(f"{KERNELS}sampling.triton"), "_BLOCK", 16)
    logits = torch.nn.functional.pad(torch.tensor([[1.0, 4.0, 2.0, 3.0]]), (0, 30), value=-torch.inf)
    for share, wanted in ((0.0, 1), (1 - 2**-53, 3)):  # in float32 the share is 1
        assert sample(logits, rows_of({"top_k": 2}, [share]), backend="triton").tolist() == [wanted]
