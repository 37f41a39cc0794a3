"""A sequence's cache in few bits: what stays whole, what is packed once and kept as it is, windows, twins, leaks."""

import numpy as np
import pytest
import torch

from services.llm_longctx.kernels.packed_pages import R4
from services.llm_longctx.kv_cache import RECENT, Entries, FewBitCache, PagedCache, PagePool, PoolExhausted

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
    for layer in range(L):
        for g in range(G):
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
@pytest.mark.parametrize("n", [1, 15, 16, 17, 48, 63, 64, 65, 79, 80, 200])
def test_the_first_page_and_the_recent_window_are_whole_to_the_bit(bits, n):
    memory, kv = FewBitCache(pool(), L, G, bits), text(n + 40)
    memory.reserve(np.full((L, G), n + 40))
    read(memory, kv, 0, n)
    for at in range(n, n + 40):
        step(memory, kv, at)
        for layer in range(L):
            got = memory.entries(layer, 1)
            assert got.positions.tolist() == list(range(at + 1))
            exact = near(got, kv, layer, 1, bits)
            assert exact[:P].all()
            assert exact[-RECENT:].all()
            assert (got.origin >= 0).sum() == max((at - RECENT) // P - 1, 0) * P or at == n  # a chunk packs at its end
    keys, values = memory.whole_heads(1, [0, 1])
    assert torch.equal(keys[1], memory.entries(1, 1).k)
    assert torch.equal(values[0], memory.entries(1, 0).v)
    for begin, end in ((0, 5), (10, 20), (n, n + 40), (3, n + 33), (17, 18)):
        if end <= n + 40:
            span = memory.span(0, 1, begin, end)
            assert torch.equal(span[0], memory.entries(0, 1).k[begin:end])
    memory.close()
    assert memory.pool.budget.held == memory.store.held == 0


@pytest.mark.parametrize("bits", [4, R4])
def test_packed_entries_are_rounded_once(bits):
    memory, kv = FewBitCache(pool(), L, G, bits), text(400)
    read(memory, kv, 0, 300)
    before = memory.entries(0, 0)
    for at in range(300, 400):
        step(memory, kv, at)
    after = memory.entries(0, 0)
    packed = before.origin >= 0
    assert packed.sum() > 200
    assert torch.equal(after.k[:300][packed], before.k[packed])
    memory.close()


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


@pytest.mark.parametrize(("sink", "slide", "n"), [(0, 60, 100), (4, 100, 180), (40, 64, 200), (64, 256, 400),
                                                  (4, 20, 90), (20, 80, 12), (0, 48, 48), (70, 30, 100)])  # fmt: skip
@pytest.mark.parametrize("absorb", [False, True])
def test_a_sliding_head_holds_what_it_holds_in_whole_entries(sink, slide, n, absorb):
    kv, held = text(n + 200), {}
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
        for at in range(n, n + 200):
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
