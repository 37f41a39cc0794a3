"""The Triton kernels against the float64 oracle, in Triton's interpreter: few tokens, shapes that nothing divides."""

import importlib

import numpy as np
import pytest
import torch

from fovea.errors import NotReady
from services.llm_longctx import kernels
from services.llm_longctx.kernels.packed_pages.layout import CACHE_FORMATS
from services.llm_longctx.kernels.packed_pages.reference import pack as pack_reference
from services.llm_longctx.tests.interpreted import KERNELS, interpreted
from services.llm_longctx.tests.test_kernels import DTYPES, LENGTHS, agree, in_pages, in_tensors, prefill, ragged
from shared.telemetry import KERNEL_CALLS

pytest.importorskip("triton", reason="triton is not installed: its wheels are for Linux")


def test_prefill_reads_tensors_that_lie_crosswise(interpreter):
    torch.manual_seed(0)
    q, k, v = (torch.randn(40, heads, 16).transpose(0, 1) for heads in (4, 2, 2))
    case = (q, k, v, kernels.BlockCsr.dense(2, 40, 12))
    agree(q, prefill(case, "triton"), prefill(case, "reference"))


def test_parts_of_a_long_problem_make_one_softmax(interpreter):
    case = ragged(torch.float32, 32, 2)
    kernel = importlib.import_module(f"{KERNELS}decode.triton")
    for parts in (kernel.Parts(3, 100), kernel.Parts(5, 64)):
        agree(case[0], kernel.decode(*case, parts), in_tensors(*case, "reference"))


@pytest.mark.parametrize("size", [4, 64])
def test_pages_are_read_where_they_lie(interpreter, size):
    *entries, weights = ragged(torch.float32, 24, 3)
    for logs in (weights, None):
        agree(entries[0], in_pages(*entries, logs, "triton", size), in_tensors(*entries, logs, "reference"))


def test_the_interpreter_runs_only_for_who_asks_and_calls_are_counted(interpreter):
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


def test_without_a_gpu_the_back_end_is_absent_and_says_what_to_try(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with interpreted(on=False):
        assert "triton" not in kernels.backends()
        with pytest.raises(NotReady, match="no GPU") as caught:
            kernels.decode(torch.zeros(1, 1, 4), [torch.zeros(2, 4)], [torch.zeros(2, 4)], backend="triton")
        assert "TRITON_INTERPRET" in caught.value.hint


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("heads", "queries", "keys", "d", "sink", "window"),
    [
        ((6, 2), 70, 130, 24, 3, 20),  # a chunk whose sinks lie far from its windows
        ((3, 1), 65, 65, 64, 0, 7),  # no sinks
        ((2, 2), 1, 90, 80, 100, 1),  # one query, and more sinks than keys
        ((4, 4), 50, 50, 3, 5, 500),  # a window of more than all keys
    ],
)
def test_windows_agree_with_the_oracle(interpreter, dtype, heads, queries, keys, d, sink, window):
    torch.manual_seed(keys)
    q, (k, v) = torch.randn(heads[0], queries, d).to(dtype), torch.randn(2, heads[1], keys, d).to(dtype)
    found, wanted = (kernels.window_prefill(q, k, v, sink, window, backend=name) for name in ("triton", "reference"))
    agree(q, found, wanted)


@pytest.mark.parametrize(
    ("heads", "b", "keys", "d", "dtype"),
    [
        ((6, 2), 64, 200, 64, torch.bfloat16),
        ((3, 1), 70, 131, 24, torch.bfloat16),  # more queries than a program takes
        ((2, 2), 5, 330, 80, torch.float32),
        ((1, 1), 1, 1, 4, torch.float32),
    ],
)
def test_last_query_scores_agree_with_the_oracle(interpreter, heads, b, keys, d, dtype):
    torch.manual_seed(keys)
    q, k = torch.randn(heads[0], b, d).to(dtype), torch.randn(heads[1], keys, d).to(dtype)
    wanted = kernels.last_query_scores(q, k, backend="reference")
    found = kernels.last_query_scores(q, k, backend="triton")
    for one, oracle in zip(found, wanted, strict=True):
        assert one.dtype == torch.float32
        assert (one.double() - oracle).abs().max() < 2e-5


def test_runs_whose_numbers_lie_on_the_device_are_the_same_runs(interpreter):
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
    for backend in ("triton", "cpu_torch"):
        found = kernels.decode_device_runs(q, (*stores, logs), runs, backend=backend)
        agree(q, found, wanted)


@pytest.mark.parametrize("bits", CACHE_FORMATS)
@pytest.mark.parametrize(
    ("d", "group", "dtype"),
    [(64, 3, torch.float32), (80, 4, torch.bfloat16), (24, 1, torch.float32), (128, 2, torch.float32)],
)
def test_packed_pages_are_read_as_they_lie(interpreter, bits, d, group, dtype):
    torch.manual_seed(d)
    layout = kernels.PackedLayout(bits, d)
    whole = torch.randn(2, 9, 16, d) * torch.tensor([1.0, 30.0])[:, None, None, None] - 2
    pages = pack_reference(layout, *whole, torch.full((9,), 23))
    logs = torch.randn(9 * 16)
    start, n = np.array([0, 5, 40, 16, 100]), np.array([64, 90, 0, 1, 44])
    weighted = np.array([True, False, True, True, True])
    exact = 1e-4 if layout.is_rotated else 6e-5  # of outputs up to 60
    q, tolerance = torch.randn(5, group, d).to(dtype), exact
    if dtype == torch.bfloat16:
        tolerance = 1.0 if layout.is_rotated else 0.5
    wanted = kernels.decode_packed(q, (layout, pages, logs), start, n, weighted, backend="reference")
    agree(q, kernels.decode_packed(q, (layout, pages, logs), start, n, weighted, backend="triton"), wanted, tolerance)
    kernel = importlib.import_module(f"{KERNELS}packed_pages.triton")
    runs = kernels.DeviceRuns(*(torch.from_numpy(x) for x in (start, n, weighted)), longest=90)
    agree(q, kernel.decode_packed(q, (layout, pages, logs), runs, kernel.Parts(4, 32)), wanted, tolerance)
