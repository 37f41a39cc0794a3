"""Every kernel back end against its float64 oracle, on odd shapes; how the C++ ones are built and loaded."""

import math
from functools import partial
from unittest.mock import Mock

import hypothesis
import numpy as np
import pytest
import torch
from hypothesis import strategies as st

from fovea.errors import Fault
from services.llm_longctx import kernels
from services.llm_longctx.engine.attention.prefill_kernels import over_history
from services.llm_longctx.kernels import sdpa_lse as sdpa_lse_module
from services.llm_longctx.kernels.block_sparse_prefill import cpu_ext as prefill_ext
from services.llm_longctx.kernels.merge_lse.reference import softmax_of_all
from services.llm_longctx.kernels.native import bindings, isa_targets
from services.llm_longctx.kernels.native import build as building
from services.llm_longctx.kernels.sdpa_lse import sdpa_lse, sdpa_lse_plain
from services.llm_longctx.methods.core.hook_results import TokenLists, TokenRows
from services.llm_longctx.tests.conftest import BUILT, native, torch_threads

FAST = [name for name in kernels.backends() if name not in {"reference", "triton"}]
TOLERANCE = {torch.float64: 1e-12, torch.float32: 3e-6, torch.bfloat16: 4e-2}


def takes(backend: str, dtype: torch.dtype) -> bool:
    return backend == "cpu_torch" or dtype != torch.float64


def differs(found: torch.Tensor, wanted: torch.Tensor) -> float:
    assert (found.isneginf() == wanted.isneginf()).all()
    finite = ~wanted.isneginf()
    return float((found.double() - wanted.double())[finite].abs().max()) if finite.any() else 0.0


def agree(q, found, expected, tolerance=None, lse_within=None) -> None:
    (out, lse), (wanted, sums) = found, expected
    tolerance = tolerance or TOLERANCE[q.dtype]
    assert (out.shape, out.dtype, lse.dtype) == (q.shape, q.dtype, torch.promote_types(q.dtype, torch.float32))
    assert differs(out, wanted) < tolerance
    assert differs(lse, sums) < (lse_within or max(tolerance, 1e-5 if q.dtype != torch.float64 else 0))


def prefill_problem(dtype, heads, queries, keys, d, block, key_block, mask_heads, density=0.4):
    q, (k, v) = torch.randn(heads[0], queries, d).to(dtype), torch.randn(2, heads[1], keys, d).to(dtype)
    first = (keys - queries) // block
    mask = torch.rand(mask_heads, -(-keys // block) - first, -(-keys // key_block)) < density
    return q, k, v, kernels.BlockCsr.from_mask(mask, block, key_block=key_block, first=first)


@st.composite
def prefills(draw: st.DrawFn) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, kernels.BlockCsr]:
    kv_heads, group = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    keys = draw(st.integers(1, 150))
    queries = draw(st.one_of(st.just(keys), st.integers(1, keys)))
    d = draw(st.sampled_from([2, 8, 16, 20, 64, 72]))
    block, key_block = draw(st.integers(1, 40)), draw(st.integers(1, 40))
    key_block = draw(st.sampled_from([block, key_block]))
    mask_heads = draw(st.sampled_from([kv_heads, kv_heads * group]))
    torch.manual_seed(draw(st.integers(0, 9)))
    dtype, density = draw(st.sampled_from(list(TOLERANCE))), draw(st.sampled_from([0.0, 0.3, 1.0]))
    heads = (kv_heads * group, kv_heads)
    return prefill_problem(dtype, heads, queries, keys, d, block, key_block, mask_heads, density)


def prefill(case, backend):
    return kernels.block_sparse_prefill(*case, backend=backend, return_lse=True)


@pytest.mark.parametrize("backend", FAST)
@hypothesis.given(prefills())
def test_prefill_agrees_with_the_oracle(backend, case):
    hypothesis.assume(takes(backend, case[0].dtype))
    agree(case[0], prefill(case, backend), prefill(case, "reference"))


DTYPES = [torch.float32, torch.bfloat16]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("shape", "queries", "keys", "d", "block", "key_block", "heads"), [
    ((4, 2), 50, 90, 24, 20, 7, 2),  # a chunk of a longer prompt; the group shares its blocks
    ((4, 2), 50, 130, 64, 32, 32, 4),  # blocks per query head
    ((1, 1), 1, 33, 3, 5, 40, 1),  # one query
    ((3, 3), 63, 63, 60, 16, 16, 3),  # no groups, a partial last block
    ((2, 1), 130, 260, 16, 130, 100, 1),  # blocks larger than a tile
    ((2, 1), 40, 120, 130, 64, 16, 2),
])  # fmt: skip
def test_every_level_prefills_like_the_oracle(level, dtype, shape, queries, keys, d, block, key_block, heads):
    torch.manual_seed(keys + d)
    case = prefill_problem(dtype, shape, queries, keys, d, block, key_block, heads)
    within = 1e-5 if level == "cpu_ext" else None
    agree(case[0], prefill(case, level), prefill(case, "reference"), lse_within=within)


LENGTHS = [0, 1, 15, 64, 129, 300]


def ragged(dtype, d, group, lengths=LENGTHS):
    """Keys and values are views of one store each."""
    torch.manual_seed(d)
    q = torch.randn(len(lengths), group, d).to(dtype)
    stores = [torch.randn(n, 2, d).to(dtype) for n in lengths]
    weights = [None, torch.full((1,), -torch.inf), torch.randn(15), None, torch.randn(129), None]
    return q, [s[:, 0] for s in stores], [s[:, 1] for s in stores], weights


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("d", "group"), [(64, 3), (24, 5), (1, 1), (80, 17), (130, 8)])
def test_every_level_decodes_ragged_problems_like_the_oracle(level, dtype, d, group):
    case = ragged(dtype, d, group, [*LENGTHS[:-1], 2500 if level == "cpu_ext" else 300])
    within = 1e-5 if level == "cpu_ext" else None
    agree(case[0], in_tensors(*case, level), in_tensors(*case, "reference"), lse_within=within)


def test_large_scores_do_not_overflow(level):
    q, keys = torch.full((1, 2, 64), 40.0), torch.full((3, 64), 40.0)
    keys[1] = -40.0
    values = torch.tensor([1.0, 2.0, 3.0])[:, None].expand(3, 64)
    out, lse = kernels.decode(q, [keys], [values], backend=level)
    assert torch.allclose(out, torch.full((1, 2, 64), 2.0))
    assert torch.allclose(lse, torch.full((1, 2), 12800 + math.log(2.0)))


@st.composite
def problems(draw: st.DrawFn):
    torch.manual_seed(draw(st.integers(0, 9)))
    group, d = draw(st.integers(1, 5)), draw(st.sampled_from([2, 16, 24, 64, 80]))
    lengths = draw(st.lists(st.integers(0, 130), min_size=1, max_size=6))
    dtype = draw(st.sampled_from(list(TOLERANCE)))
    q = torch.randn(len(lengths), group, d).to(dtype)
    entries = [torch.randn(2, n, d).to(dtype) for n in lengths]
    several = [[None, torch.randn(n), torch.where(torch.rand(n) < 0.5, 0.0, -torch.inf)] for n in lengths]
    weights = [draw(st.sampled_from(one)) for one in several]
    return q, [e[0] for e in entries], [e[1] for e in entries], weights


def in_tensors(q, keys, values, weights, backend):
    return kernels.decode(q, keys, values, log_weights=weights, backend=backend)


def in_pages(q, keys, values, weights, backend, size=16):
    counts = [-(-len(k) // size) for k in keys]
    pool = torch.full((sum(counts) + 3, 2, size, q.shape[2]), torch.nan, dtype=q.dtype)
    free = torch.randperm(len(pool)).tolist()
    tables = [[free.pop() for _ in range(n)] for n in counts]
    for table, k, v in zip(tables, keys, values, strict=True):
        for i, page in enumerate(table):
            part = slice(i * size, (i + 1) * size)
            pool[page, 0, : len(k[part])], pool[page, 1, : len(k[part])] = k[part], v[part]
    pages = kernels.PageTable.of(tables, [len(k) for k in keys])
    return kernels.decode_pages(q, pool, pages, log_weights=weights, backend=backend)


def in_runs(q, keys, values, weights, backend):
    n = np.array([len(k) for k in keys], np.int64)
    start = np.cumsum(n + 2) - n  # behind two entries that belong to nobody
    stores = torch.randn(2, int((n + 2).sum()), q.shape[2]).to(q.dtype)
    logs = torch.randn(stores.shape[1], dtype=torch.promote_types(q.dtype, torch.float32))
    for first, k, v, weight in zip(start.tolist(), keys, values, weights, strict=True):
        at = slice(first, first + len(k))
        stores[0, at], stores[1, at] = k, v
        logs[at] = logs[at] if weight is None else weight
    weighted = np.array([weight is not None for weight in weights])
    return kernels.decode_runs(q, (*stores, logs), start, n, weighted, backend=backend)


READERS = {"tensors": in_tensors, **{f"pages of {n}": partial(in_pages, size=n) for n in (4, 16, 64)}, "runs": in_runs}


@pytest.mark.parametrize("place", READERS)
@pytest.mark.parametrize("backend", FAST)
@hypothesis.given(problems())
def test_ragged_decode_agrees_with_the_oracle_wherever_entries_lie(backend, place, case):
    hypothesis.assume(takes(backend, case[0].dtype))
    agree(case[0], READERS[place](*case, backend), in_tensors(*case, "reference"))


@pytest.mark.parametrize("backend", FAST)
@hypothesis.given(prefills(), st.integers(0, 90), st.integers(1, 200))
def test_a_window_and_sinks_are_the_mask_they_name(backend, case, sink, window):
    q, k, v, _ = case
    hypothesis.assume(takes(backend, q.dtype))
    found, wanted = (kernels.window_prefill(q, k, v, sink, window, backend=name) for name in (backend, "reference"))
    agree(q, found, wanted)


@pytest.mark.parametrize("backend", FAST)
@hypothesis.given(prefills())
def test_a_probe_sums_what_the_last_queries_see(backend, case):
    q, k, _, _ = case
    hypothesis.assume(takes(backend, q.dtype))
    q = q[:, -9:]
    both = (kernels.last_query_scores(q, k, backend=name) for name in (backend, "reference"))
    for found, wanted in zip(*both, strict=True):
        assert found.dtype == torch.promote_types(q.dtype, torch.float32)
        torch.testing.assert_close(found.double(), wanted, atol=max(1e-4 * TOLERANCE[q.dtype], 1e-5), rtol=1e-5)
        assert (found.sum(-1) - q.shape[1]).abs().max() < 1e-4


@hypothesis.given(st.lists(st.integers(0, 5), min_size=1, max_size=5), st.integers(0, 99))
def test_parts_merge_into_one_softmax_in_any_order(sizes, seed):
    torch.manual_seed(seed)
    logits = [torch.randn(4, n, dtype=torch.float64) * 9 for n in sizes]
    values = [torch.randn(4, n, 3, dtype=torch.float64) for n in sizes]
    parts = [softmax_of_all(s, v) for s, v in zip(logits, values, strict=True)]
    wanted, sums = softmax_of_all(torch.cat(logits, 1), torch.cat(values, 1))
    for order in (parts, parts[::-1]):
        out, lse = kernels.merge(*order)
        assert differs(out, wanted) < 1e-12
        assert differs(lse, sums) < 1e-12
    nested, lse = kernels.merge(parts[0], kernels.merge(*parts[1:])) if len(parts) > 1 else kernels.merge(*parts)
    assert differs(nested, wanted) < 1e-12


def flash(wrong: float = 0.0):
    """FlashAttention's operator as torch has it, by products: more results than two, and a padded LSE."""

    def run(q, k, v, dropout, causal):
        assert dropout == 0
        out, lse = sdpa_lse_plain(q, k, v, causal=causal)
        return out + wrong, torch.nn.functional.pad(lse, (0, 7)), None, None

    return run


def test_flash_attention_is_taken_where_nothing_is_added_to_scores(monkeypatch):
    q, k, v = torch.randn(3, 1, 2, 9, 16)
    monkeypatch.setattr(sdpa_lse_module, "has_flash", lambda _: True)
    monkeypatch.setattr(sdpa_lse_module, "flash_operator", lambda: flash(wrong=1.0))
    out, lse = sdpa_lse(q, k, v, causal=True)
    wanted, sums = sdpa_lse_plain(q, k, v, causal=True)
    assert torch.equal(out, wanted + 1)
    assert torch.equal(lse, sums)
    biased, _ = sdpa_lse(q, k, v, bias=torch.zeros(9, 9))
    assert torch.allclose(biased, sdpa_lse_plain(q, k, v)[0], atol=1e-5)


@pytest.mark.parametrize(
    ("operator", "answers"),
    [(flash(), True), (flash(wrong=0.1), False), (Mock(side_effect=RuntimeError), False), (None, False)],
)
def test_flash_attention_is_tried_before_it_is_used(operator, answers, monkeypatch):
    monkeypatch.setattr(sdpa_lse_module, "flash_operator", lambda: operator)
    try_again = sdpa_lse_module._flash_answers.__wrapped__
    assert try_again(torch.bfloat16, torch.device("cpu")) is answers
    assert not sdpa_lse_module.has_flash(torch.zeros(1, 1, 4, 16, dtype=torch.bfloat16)), "not on a CPU"


def test_the_fused_operator_and_the_plain_product_agree():
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 1, 2, 7, 16)
    bias = torch.randn(7, 7).masked_fill(torch.eye(7, dtype=torch.bool), -torch.inf)
    bias[3] = -torch.inf
    for options in ({}, {"causal": True}, {"bias": bias}):
        for found, wanted in zip(sdpa_lse(q, k, v, **options), sdpa_lse_plain(q, k, v, **options), strict=True):
            assert differs(found, wanted) < 1e-5


ONE, THREE = torch.zeros(1, 2, 4), torch.zeros(3, 4)
SHAPES = [
    ((4, 8, 4), (3, 8, 4), 3, 4), ((2, 9, 4), (2, 8, 4), 2, 4), ((2, 8, 4), (2, 8, 6), 2, 4),
    ((2, 8, 4), (2, 8, 4), 1, 4), ((2, 8, 4), (2, 8, 4), 2, 8),
]  # fmt: skip


def in_blocks(q, k, heads, block):
    blocks = kernels.BlockCsr.from_mask(torch.ones(heads, 2, 2, dtype=torch.bool), block)
    kernels.block_sparse_prefill(torch.zeros(q), torch.zeros(k), torch.zeros(k), blocks)


@pytest.mark.parametrize(("call", "told"), [
    *((partial(in_blocks, *shapes), "queries") for shapes in SHAPES),
    (lambda: kernels.window_prefill(torch.zeros(2, 3, 8), *torch.zeros(2, 1, 3, 8), 1, 0), "window of 1 or more"),
    (lambda: kernels.last_query_scores(torch.zeros(2, 4, 8), torch.zeros(1, 3, 8)), "last b of N"),
    (lambda: kernels.last_query_scores(torch.zeros(2, 3, 8), torch.zeros(1, 3, 8).double()), "of their dtype"),
    (kernels.merge, "one part"), (lambda: kernels.decode(ONE, [THREE], []), "log-weights"),
    (lambda: kernels.decode(ONE, [torch.zeros(3, 5)], [torch.zeros(3, 5)]), "problem 0"),
    (lambda: kernels.decode(ONE, [THREE], [THREE], log_weights=[torch.zeros(2)]), "3 entries"),
    (lambda: kernels.BlockCsr.from_mask(torch.ones(1, 2, 2), 4), "bool"),
    (lambda: kernels.BlockCsr.from_mask(torch.ones(1, 2, 2, dtype=torch.bool), 0), "bool"),
])  # fmt: skip
def test_what_does_not_fit_is_refused(call, told):
    with pytest.raises(ValueError, match=told):
        call()


@st.composite
def listings(draw: st.DrawFn) -> tuple[int, int, tuple[TokenRows, ...], int]:
    """A chunk from `offset` to N whose last `tail` queries read everything, and its lists by blocks."""
    block, offset = draw(st.integers(1, 20)), draw(st.integers(0, 60))
    N = offset + draw(st.integers(1, 60))
    end = N - draw(st.integers(0, N - offset))
    torch.manual_seed(draw(st.integers(0, 9)))
    rows = []
    for row in range(offset // block, -(-end // block) if end > offset else 0):
        until = min((row + 1) * block, end)
        tokens = torch.randperm(until)[: draw(st.integers(1, until))].sort().values
        rows.append(TokenRows(max(row * block, offset), until, torch.cat((torch.zeros(1).long(), tokens)).unique()))
    if end < N:
        rows.append(TokenRows(end, N, None))
    return offset, N, tuple(rows), block


@native
@pytest.mark.parametrize("dtype", DTYPES)
@hypothesis.given(listings())
def test_lists_taken_together_are_the_lists_one_by_one(dtype, case):
    offset, N, rows, block = case
    q, k, v = torch.randn(6, N - offset, 16), torch.randn(2, N, 16), torch.randn(2, N, 16)
    out, lse = over_history(*(x.to(dtype) for x in (q, k, v)), TokenLists(rows, block), "auto")
    wanted, sums = over_history(q, k, v, TokenLists(rows), "cpu_torch")
    assert out.dtype == dtype
    torch.testing.assert_close(out.float(), wanted, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])
    torch.testing.assert_close(lse, sums, atol=max(TOLERANCE[dtype], 1e-5), rtol=0)


compiled = pytest.mark.skipif(building.shutil.which("g++") is None, reason="no compiler")


@native
def test_threads_share_the_work_without_changing_the_result(native_level):
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 300, 64), *torch.randn(2, 1, 300, 64)
    blocks = kernels.BlockCsr.dense(3, 300, 32)
    alone = prefill_ext.prefill(q, k, v, blocks)[0]
    with torch_threads(4):
        assert torch.equal(prefill_ext.prefill(q, k, v, blocks)[0], alone)


def test_libraries_fit_the_processor_best_first():
    every = frozenset().union(*(target.needs for target in isa_targets.TARGETS))
    assert [*isa_targets.runnable_targets(every)] == [*isa_targets.TARGETS]
    assert isa_targets.runnable_targets([]) == [t for t in isa_targets.TARGETS if not t.needs]


@pytest.fixture
def unloaded():
    bindings.load_library.cache_clear()
    yield
    bindings.load_library.cache_clear()


@pytest.fixture
def place(monkeypatch, tmp_path):
    for module in (isa_targets, building):
        monkeypatch.setattr(module, "PLACE", tmp_path)
    return tmp_path


@native
def test_an_unbuilt_library_is_told_and_not_an_error(monkeypatch, place, unloaded):
    assert (bindings.explain_absence(), bindings.describe()[0]) == ("it is not built", "note")
    assert "fovea build-kernels" in bindings.describe()[1]
    monkeypatch.undo()
    bindings.load_library.cache_clear()
    assert bindings.describe()[0] == "good"


@native
def test_without_a_compiler_nothing_happens_and_what_is_built_is_kept(monkeypatch, capsys):
    monkeypatch.setattr(building.shutil, "which", lambda _name: None)
    building.build_kernels(force=True)
    assert "No C++ compiler" in capsys.readouterr().out
    assert building.build("no-such-compiler", BUILT[0]) == isa_targets.library_file(BUILT[0])


@native
@compiled
def test_a_failing_compiler_is_quoted(monkeypatch, place):
    monkeypatch.setattr(building, "sources", lambda: [place / "gone.cpp"])
    with pytest.raises(Fault, match="can't build", check=lambda e: "gone.cpp" in e.hint):
        building.build(building.shutil.which("g++"), BUILT[0])
    assert not list(place.iterdir())


@native
@compiled
def test_a_level_that_the_compiler_does_not_know_is_left_out(monkeypatch, place, capsys):
    unknown = isa_targets.Target("later", ("-mno-such-instruction",), frozenset())
    (place / "one.cpp").write_text('extern "C" int fovea_ready() { return 1; }\n')
    monkeypatch.setattr(building, "sources", lambda: [place / "one.cpp"])
    monkeypatch.setattr(building, "TARGETS", (unknown, BUILT[-1]))
    building.build_kernels(force=True)
    assert "later: left out" in capsys.readouterr().out
    assert isa_targets.library_file(BUILT[-1]).exists()
    monkeypatch.setattr(building, "TARGETS", (unknown,))
    with pytest.raises(Fault, match="can't build"):
        building.build_kernels(force=True)


@native
def test_a_library_that_the_system_refuses_makes_way_for_the_next(monkeypatch, unloaded):
    real = bindings.open_library
    first, *_ = BUILT

    def opened(file):
        if file == isa_targets.library_file(first):
            raise OSError("no tiles for this process")
        return real(file)

    monkeypatch.setattr(bindings, "open_library", opened)
    found, told = bindings.load_library()
    assert told == (BUILT[1].name if len(BUILT) > 1 else "it can't be loaded: no tiles for this process")
    assert (found is None) == (len(BUILT) == 1)
