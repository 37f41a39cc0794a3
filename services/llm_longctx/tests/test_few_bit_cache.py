"""Keys and values of few bits: their pages, a sequence's cache of them, and decoding under every method."""

import math
from functools import cache
from itertools import product

import numpy as np
import pytest
import torch
from scipy.linalg import block_diag, hadamard

from fovea.errors import InvalidOption
from services.llm_longctx.engine import Engine
from services.llm_longctx.engine.offline.completion import Request
from services.llm_longctx.engine.quality.fidelity_monitor import FidelityMonitor
from services.llm_longctx.kernels import decode_packed
from services.llm_longctx.kernels.packed_pages import (
    CACHE_FORMATS,
    R3,
    R4,
    PackedLayout,
    pack_pages,
    reference,
    unpack_pages,
)
from services.llm_longctx.kv_cache import RECENT, Entries, FewBitCache, PagedCache, PagePool, PoolExhausted
from services.llm_longctx.methods import methods
from services.llm_longctx.tests.conftest import native
from services.llm_longctx.tests.hooks import serve
from services.llm_longctx.tests.method_contract.oracle import trials
from services.llm_longctx.tests.tiny_models import random_decoder
from shared.lm.builders import llama
from tests.harness.hypothesis_profiles import in_depth

WIDTHS = (2, 10, 16, 24, 64, 80, 128)


def entries(m: int, d: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys whose channels differ in size and offset as real ones do, with a constant and an empty one; values."""
    at = torch.Generator().manual_seed(seed)
    k = torch.randn(m, 16, d, generator=at) * torch.logspace(-3, 1.3, d) + 20 * torch.randn(d, generator=at)
    k[..., 0] = 3.25
    k[..., 1] = 0
    return k, torch.randn(m, 16, d, generator=at) * torch.logspace(-2, 1, 16)[:, None]


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("d", WIDTHS)
def test_an_entry_errs_by_half_a_scale_at_most(bits, d):
    layout, (k, v) = PackedLayout(bits, d), entries(3, d)
    pages = reference.pack(layout, k, v)
    assert (pages.shape, pages.dtype) == ((3, layout.nbytes), torch.uint8)
    k_back, v_back = reference.unpack(layout, pages)
    span = k.amax(1) - k.amin(1)
    # A scale is at most an eighth larger than it must be, and reaches the offset in 127 steps.
    step = 1.125 * torch.maximum(span / (2**bits - 1), k.abs().amax(1) / 127) + 2**-20
    assert ((k_back - k).abs() <= 0.501 * step[:, None]).all()
    assert (k_back[..., 1] == 0).all()
    for begin in range(0, d, 64):
        part = v[..., begin : begin + 64]
        span = part.amax(-1) - part.amin(-1)
        step = 1.125 * torch.maximum(span / (2**bits - 1), part.abs().amax(-1) / 127) + 2**-20
        assert ((v_back - v)[..., begin : begin + 64].abs() <= 0.501 * step[..., None]).all()


def test_a_page_lies_as_documented():
    """By hand: 16 keys 0 … 15 in one channel, and values of 15 in the first entry alone."""
    layout = PackedLayout(4, 2)
    k, v = torch.zeros(1, 16, 2), torch.zeros(1, 16, 2)
    k[0, :, 0] = torch.arange(16.0)
    v[0, 0, 1] = 15.0
    raw = reference.pack(layout, k, v)[0].numpy()
    assert raw[:64].view(np.uint32).tolist() == list(range(16))  # channel 0 is the first code of each lane
    assert raw[128:192].view(np.uint32).tolist() == [0, 15, *[0] * 14]  # lane 1 is channel 1, entry 0 its first code
    assert raw[[256, 256 + 32]].tolist() == [20 << 3] * 2  # scales of 1


def sylvester(d: int) -> torch.Tensor:
    """Hadamard blocks, the largest first, of the powers of two that add up to the width."""
    sizes = [1 << digit for digit in range(9, -1, -1) if d >> digit & 1]
    return torch.from_numpy(block_diag(*(hadamard(n) / math.sqrt(n) for n in sizes)))


def sign(head: int, channel: int) -> int:
    x = (head * 0x9E3779B9 + channel * 0x85EBCA6B) % 2**32
    x = (x ^ x >> 16) * 0x7FEB352D % 2**32
    x = (x ^ x >> 15) * 0x846CA68B % 2**32
    return -1 if (x ^ x >> 16) & 1 else 1


@pytest.mark.parametrize(("form", "levels"), [
    (R3, (0.2451, 0.7560, 1.3439, 2.1519)), (R4, (0.1284, 0.3880, 0.6568, 0.9423, 1.2562, 1.6180, 2.0690, 2.7326)),
])  # fmt: skip
@pytest.mark.parametrize("d", WIDTHS)
def test_a_rotated_entry_is_its_nearest_levels_by_the_definition(form, levels, d):
    layout, (k, v) = PackedLayout(form, d), entries(2, d, 3)
    heads, table = (0, 41), torch.tensor([*(-x for x in levels), *levels], dtype=torch.float64)
    got = reference.unpack(layout, reference.pack(layout, k, v, torch.tensor(heads)))
    for back, x in zip(got, (k, v), strict=True):
        for page, head in enumerate(heads):
            rotation = sylvester(d) * torch.tensor([sign(head, c) for c in range(d)])
            assert torch.allclose(rotation @ rotation.T, torch.eye(d, dtype=torch.float64))
            for i in range(16):
                one = x[page, i].double()
                y = rotation @ one / one.norm() * math.sqrt(d)
                rounded = table[(y[:, None] - table).abs().argmin(1)]
                expected = rotation.T @ rounded * (one.norm() / rounded.norm())
                assert (back[page, i] - expected).norm() < 2e-3 * one.norm()  # a scale has half precision


def test_an_entry_of_128_channels_takes_132_and_100_bytes_and_a_page_knows_its_head():
    assert [PackedLayout(form, 128).nbytes for form in (R4, R3)] == [16 * 132, 16 * 100]
    layout, numbers = PackedLayout(R3, 10), [0, 1, 4097, 2**31 - 1]
    pages = reference.pack(layout, *entries(4, 10), torch.tensor(numbers))
    assert reference.heads_of(pages).tolist() == numbers
    zero = torch.zeros(1, 16, 10)
    assert all((one == 0).all() for one in reference.unpack(layout, reference.pack(layout, zero, zero)))


@native
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("form", CACHE_FORMATS)
@pytest.mark.parametrize("d", WIDTHS)
def test_cpp_packs_and_unpacks_as_the_reference(form, d, dtype):
    layout, heads = PackedLayout(form, d), np.array([3, 0, 3, 70_000, 5])
    k, v = (x.to(dtype) for x in entries(5, d, 1))
    store = torch.full((9, layout.nbytes), 255, dtype=torch.uint8)
    order = np.array([7, 0, 3, 8, 2])
    pack_pages(layout, k.flatten(0, 1), v.flatten(0, 1), np.arange(5) * 16, store, order, heads)
    expected = reference.pack(layout, k, v, torch.from_numpy(heads))
    # Sums in another order round another way: a rotated channel between two levels may take the other one.
    assert (store[order] != expected).float().mean() <= (0.01 if layout.is_rotated else 0)
    assert (store[[1, 4, 5, 6]] == 255).all()
    got = [torch.empty(80, d, dtype=dtype) for _ in range(2)]
    unpack_pages(layout, store, order, *got)
    for mine, its in zip(got, reference.unpack(layout, store[order]), strict=True):
        near = 2e-6 * its.abs().max() + (its.abs().max() * 2**-8 if dtype == torch.bfloat16 else 0)
        assert (mine - its.flatten(0, 1).to(dtype)).abs().max() <= (near if layout.is_rotated else 0)


@native
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bits", CACHE_FORMATS)
@pytest.mark.parametrize(("d", "group"), [(2, 1), (10, 5), (16, 3), (64, 3), (80, 4), (128, 9)])
def test_decode_reads_packed_pages_like_the_reference(bits, d, group, dtype):
    """Single entries, runs that begin and end in the middle of pages, spans of several tasks, weights."""
    layout = PackedLayout(bits, d)
    torch.manual_seed(d)
    k, v = entries(140, d, 2)
    k = k / 10
    store = reference.pack(layout, k, v, torch.full((140,), 77))
    weights = torch.randn(140 * 16)
    weights[2203:2220] = torch.nan  # no weighted run has these
    start = np.array([0, 5, 15, 16, 33, 3, 100, 640, 2220])
    n = np.array([1, 11, 1, 16, 300, 2200, 0, 128, 1])
    weighted = np.array([0, 1, 0, 1, 0, 1, 0, 0, 1], bool)
    q = torch.randn(len(n), group, d).to(dtype)
    out, lse = decode_packed(q, (layout, store, weights), start, n, weighted)
    exact, exact_lse = decode_packed(q, (layout, store, weights), start, n, weighted, backend="reference")
    atol = 3e-4 if dtype == torch.float32 else 6e-2
    torch.testing.assert_close(out.double(), exact, atol=atol, rtol=1e-2)
    # In bfloat16 queries times scales, or rotated queries and levels, are rounded once more.
    atol = 3e-4 if dtype == torch.float32 else 5e-2 if layout.is_rotated else 2e-2
    torch.testing.assert_close(lse.double(), exact_lse, atol=atol, rtol=1e-5)
    assert (out[6] == 0).all()
    assert (lse[6] == -torch.inf).all()


L, G, D, P = 2, 2, 16, 16


def pool(pages: int = 4000) -> PagePool:
    return PagePool(pages, P, D, torch.float32)


def text(n: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(2, L, G, n, D, generator=torch.Generator().manual_seed(seed))


def read(memory: PagedCache, kv: torch.Tensor, begin: int, end: int) -> None:
    for layer in range(L):
        memory.append(layer, range(G), kv[0, layer, :, begin:end], kv[1, layer, :, begin:end])
        memory.end_chunk(layer)
    memory.length = end


def step(memory: PagedCache, kv: torch.Tensor, at: int) -> None:
    slots = memory.begin_step()
    for layer, g in np.ndindex(L, G):
        memory.pool.keys[slots[layer, g]] = kv[0, layer, g, at]
        memory.pool.values[slots[layer, g]] = kv[1, layer, g, at]
    memory.end_step()


def near(got: Entries, kv: torch.Tensor, layer: int, g: int, bits: int) -> torch.Tensor:
    """Whether entries are those of the text at their positions; which are so to the bit."""
    real = got.positions >= 0
    k, v = (kv[i, layer, g][got.positions[real]] for i in range(2))
    close = {8: 0.06, 4: 0.6, R4: 0.9}[bits]
    assert (got.k[real] - k).abs().max() < close
    assert (got.v[real] - v).abs().max() < close
    return ((got.k[real] == k) & (got.v[real] == v)).all(1)


@pytest.mark.parametrize("bits", [8, 4, R4])
@pytest.mark.parametrize("n", [1, 16, 63, 65, 80, 200])
def test_the_first_page_and_the_recent_window_are_whole_to_the_bit(bits, n):
    memory, kv = FewBitCache(pool(), L, G, bits), text(n + 40)
    memory.reserve(np.full((L, G), n + 40))
    read(memory, kv, 0, n)
    before = memory.entries(0, 0)
    for at in range(n, n + 40):
        step(memory, kv, at)
        for layer in range(L):
            got = memory.entries(layer, 1)
            assert got.positions.tolist() == list(range(at + 1))
            exact = near(got, kv, layer, 1, bits)
            assert exact[:P].all()
            assert exact[-RECENT:].all()
            assert (got.origin >= 0).sum() == max((at - RECENT) // P - 1, 0) * P or at == n  # a chunk packs at its end
    packed, after = before.origin >= 0, memory.entries(0, 0)
    assert packed.sum() == max(n // P - 3, 0) * P
    assert torch.equal(after.k[:n][packed], before.k[packed])
    keys, values = memory.whole_heads(1, [0, 1])
    assert torch.equal(keys[1], memory.entries(1, 1).k)
    assert torch.equal(values[0], memory.entries(1, 0).v)
    for begin, end in ((0, 5), (10, 20), (n, n + 40), (3, n + 33), (17, 18)):
        if end <= n + 40:
            assert torch.equal(memory.span(0, 1, begin, end)[0], memory.entries(0, 1).k[begin:end])
    memory.close()
    assert memory.pool.budget.held == memory.store.held == 0


def test_eviction_in_the_middle_of_pages_leaves_other_pages_as_they_are():
    memory, kv = FewBitCache(pool(), L, G, 4), text(300)
    read(memory, kv, 0, 300)
    held, bytes_before = memory.entries(0, 0), memory.nbytes
    kept = torch.tensor([p for p in range(300) if p not in {40, 41, 170, 299}])
    memory.keep(0, 0, held.take(kept))
    after = memory.entries(0, 0)
    at = dict(zip(after.positions.tolist(), after.k, strict=True))
    assert (sorted(at), memory.nbytes <= bytes_before) == (kept.tolist(), True)
    assert all(torch.equal(at[p], held.k[p]) for p in range(16, 256) if p // 16 not in {40 // 16, 170 // 16})
    memory.close()


@pytest.mark.parametrize(("sink", "slide", "n"), [(4, 100, 180), (40, 64, 200), (20, 80, 12), (0, 48, 48)])
@pytest.mark.parametrize("absorb", [False, True])
def test_a_sliding_head_holds_what_it_holds_in_whole_entries(sink, slide, n, absorb):
    kv, held = text(n + 120), {}
    for bits in (16, 8):
        memory = PagedCache(pool(), L, G) if bits == 16 else FewBitCache(pool(), L, G, 8)
        read(memory, kv, 0, n)
        for g in range(G):
            every = memory.entries(0, g)
            keep = torch.cat((torch.arange(min(sink, n)), torch.arange(max(n - slide, min(sink, n)), n)))
            entries = every.take(keep)
            if absorb:
                nothing = torch.zeros(1, D)
                entries = entries.weigh().join(nothing, nothing, torch.tensor([-1]), -torch.inf)
            memory.keep(0, g, entries, sink=sink, slide=slide, absorbed=0 if absorb else None)
        log = []
        for at in range(n, n + 120):
            step(memory, kv, at)
            got = memory.entries(0, 1)
            log.append(sorted(got.positions.tolist()))
            near(got, kv, 0, 1, 8)
            if absorb:
                (where,) = (got.positions < 0).nonzero()[0].tolist()
                log.append([round(float(x), 1) for x in got.k[where, :2]])
        held[bits] = log
        twin = memory.fork()
        assert sorted(twin.entries(0, 1).positions.tolist()) == log[-2 if absorb else -1]
        twin.close()
        memory.close()
        assert memory.pool.budget.held == 0
    assert held[8][:: 1 + absorb] == held[16][:: 1 + absorb]
    if absorb:
        means = [np.array(held[bits][1::2]) for bits in (8, 16)]
        assert np.abs(means[0] - means[1]).max() < 0.15


def act_once(rng: np.random.Generator, live: list, which: int, kv: torch.Tensor) -> None:
    memory, known = live[which]
    action = rng.random()
    if action < 0.6:
        at = memory.length
        step(memory, kv, at)
        for one in known:
            one.add(at)
    elif action < 0.85:
        held = memory.entries(0, 1)
        kept = torch.from_numpy(rng.random(len(held.positions)) < 0.97).nonzero()[:, 0]
        memory.keep(0, 1, held.take(kept))
        known[1] = set(held.positions[kept].tolist())
    elif len(live) < 4:
        live.append((memory.fork(), [set(one) for one in known]))


@pytest.mark.parametrize("bits", [4, R4])
def test_a_walk_of_cuts_steps_and_twins_loses_nothing(bits):
    """Random orders against sets of positions; bytes never above the budget, and none at the end."""
    rng = np.random.default_rng(3)
    shared, kv = pool(160), text(1200)
    live = [(FewBitCache(shared, L, G, bits), [set(range(130)) for _ in range(G)])]
    read(live[0][0], kv, 0, 130)
    for _ in range(150):
        which = int(rng.integers(len(live)))
        try:
            act_once(rng, live, which, kv)
        except PoolExhausted:
            live.pop(which)[0].close()
            if not live:
                break
            continue
        memory, known = live[which]
        for g in range(G):
            got = memory.entries(0, g)
            assert set(got.positions.tolist()) == known[g]
            near(got, kv, 0, g, bits)
        assert memory.nbytes <= shared.budget.held <= shared.budget.capacity
    for memory, _ in live:
        memory.close()
    assert shared.budget.held == shared.held == 0


IDS = [(7 * i + i * i) % 61 for i in range(1400)]
ROLES = {"schema": "head-plan/1", "roles": [[1, 0], [0, 1]], "heads": [[1, 1]]}


@pytest.fixture(scope="module")
def net():
    sizes = {"vocab": 61, "width": 32, "layers": 2, "heads": 4, "kv_heads": 2, "hidden": 56, "positions": 1500}
    return random_decoder(lambda: llama(**sizes, head_dim=16), 0.2)


@cache
def decode(net, name, bits, backend="auto", prompt=150, steps=24):
    engine = Engine(net, trials(methods()[name])[0], ROLES, page=16, backend=backend, cache_bits=bits)
    s = engine.open()
    s.prefill(IDS[:prompt])
    logits = torch.stack([s.step(IDS[prompt + i]).float() for i in range(steps)])
    held, foreseen = s.kv_bytes(), engine.estimate(prompt=prompt, new=steps)
    s.close()
    assert engine.kv_bytes() == engine.pool.budget.held == 0
    return logits, held, foreseen


PAIRS = list(product(sorted(methods()), CACHE_FORMATS))


@pytest.mark.parametrize(("name", "bits"), in_depth(PAIRS, [one for one in PAIRS if R4 in one or "duo" in one]))
def test_every_method_stays_near_itself_in_few_bits(net, name, bits):
    whole, _, _ = decode(net, name, 16)
    few, held, foreseen = decode(net, name, bits)
    p, q = whole.log_softmax(-1), few.log_softmax(-1)
    assert (p.exp() * (p - q)).sum(-1).mean() <= {8: 2e-3, 4: 0.08, R4: 0.08, R3: 0.2}[bits]
    assert not torch.equal(whole, few) or held < 40_000
    assert held <= foreseen


@pytest.mark.parametrize(("bits", "most"), [(4, 0.30), (8, 0.56), (R4, 0.28), (R3, 0.22)])
def test_bytes_of_a_long_prompt(net, bits, most):
    """In the served model's proportions: heads of 64 channels in bfloat16."""
    wide = llama(vocab=61, width=64, layers=2, heads=4, kv_heads=2, head_dim=64, hidden=56, positions=8200)
    engine = Engine(wide.bfloat16().eval(), page=16, cache_bits=bits)
    assert engine.estimate(prompt=8192) <= most * engine.dense_bytes(8192)
    half = engine.policy_of("duo", {"schema": "head-plan/1", "roles": [[1, 0], [0, 1]]})
    if bits == 4:
        assert half.nbytes(8192, 0, engine.pool) <= 0.165 * engine.dense_bytes(8192)
    s = engine.open()
    s.prefill([i % 61 for i in range(1500)], [512, 512, 476])
    assert s.kv_bytes() <= engine.estimate(prompt=1500)
    assert s.kv_bytes() <= (most + 0.03) * engine.dense_bytes(1500)
    s.close()


def test_pages_of_another_size_are_refused(net):
    with pytest.raises(InvalidOption, match="needs pages of 16 entries"):
        Engine(net, page=8, cache_bits=4)
    with pytest.raises(InvalidOption, match="needs pages of 16 entries"):
        Engine(net, page=8).policy_of("dense", cache_bits=8)


@pytest.mark.parametrize(("how", "bits"), [("dense", 4), ("duo", 4), ("snapkv", 4), ("duo", R4), ("snapkv", R3)])
def test_a_cached_prefix_gives_the_same_answer(net, how, bits):
    how = trials(methods()[how])[0]
    request = Request(IDS[:1200], how, ROLES, max_tokens=30)
    alone = serve(Engine(net, page=16, cache_bits=bits), request)
    engine = Engine(net, page=16, cache_bits=bits)
    serve(engine, Request([*IDS[:1100], 5, 6], how, ROLES, max_tokens=3))
    again = serve(engine, request)
    assert (alone.usage.cached_tokens, again.usage.cached_tokens, again.tokens) == (0, 1024, alone.tokens)
    whole = serve(engine, Request(IDS[:1200], how, ROLES, max_tokens=3, cache_bits=16))
    assert whole.usage.cached_tokens == 0, "whole entries are not taken from packed ones"
    engine.scheduler.close()
    assert engine.pool.budget.held == 0


def test_requests_of_all_types_go_together_and_are_preempted(net):
    asked = {bits: Request(IDS[:700], max_tokens=200, cache_bits=bits) for bits in (16, 8, 4, R3)}
    alone = {bits: Engine(net, page=16).generate([one])[0].tokens for bits, one in asked.items()}
    engine, several = Engine(net, page=16, kv_bytes=1), (16, 8, 4, 4, 16, 16, R3)
    done = engine.generate([asked[bits] for bits in several])
    assert [one.tokens for one in done] == [alone[bits] for bits in several]
    usages = [one.usage for one in done]
    assert sum(usage.preempted for usage in usages) > 0
    assert usages[2].kv_bytes < usages[1].kv_bytes < usages[0].kv_bytes
    engine.scheduler.backend.reclaim()
    assert engine.pool.budget.held == 0


def test_dense_in_few_bits_is_watched(net):
    engine = Engine(net, page=16, cache_bits=4, monitor=FidelityMonitor(share=1.0, floor=0.0, seed=0))
    for bits, compared in ((16, 0), (4, 1)):
        engine.add_request(Request(IDS[:200], max_tokens=8, cache_bits=bits))
        while engine.scheduler.in_flight or engine.scheduler.backend.background_tasks:
            engine.scheduler.step()
        assert len(engine.monitor) == compared
    assert engine.policy.variant != engine.dense.variant
