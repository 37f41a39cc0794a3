"""Pages: nothing leaks, nothing is freed twice, and no sequence ever reads or writes another's entries."""

import resource
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, precondition, rule

from services.llm_longctx.kernels.packed_pages import CACHE_FORMATS
from services.llm_longctx.kv_cache import Entries, PagedCache, PagePool, PoolExhausted
from shared.serving.memory_guard import read_proc_bytes

L, G, D, P = 2, 3, 4, 4


def pool(capacity=4000, page=P):
    return PagePool(capacity, page, D, torch.float32)


def fresh_entries(T, start):
    """Distinct keys that tell their position, values that tell it negated: [G,T,d]."""
    ramp = torch.arange(start, start + T).float()
    k = ramp[None, :, None] + torch.arange(G)[:, None, None] * 1000 + torch.zeros(G, T, D)
    return k, -k


def feed(memory, T, sliding=()):
    """Append a chunk to all heads of all layers; those that slide are cut again: (layer, head) → how many."""
    k, v = fresh_entries(T, memory.length)
    for layer in range(L):
        whole = [h for h in range(G) if (layer, h) not in sliding]
        if whole:
            memory.append(layer, whole, k[whole] + 0.5 * layer, v[whole])
    for layer, head in sliding:
        held, new = memory.entries(layer, head), torch.arange(memory.length, memory.length + T)
        held = held.take(held.positions.argsort())
        parts = ((held.k, k[head] + 0.5 * layer), (held.v, v[head]), (held.positions, new))
        cut(memory, layer, head, 1, sliding[layer, head], Entries(*map(torch.cat, parts)))
    memory.length += T


def step(memory):
    slots = memory.begin_step()
    k, v = fresh_entries(1, memory.length)
    for layer, head in np.ndindex(L, G):
        memory.pool.keys[slots[layer, head]] = k[head, 0] + 0.5 * layer
        memory.pool.values[slots[layer, head]] = v[head, 0]
    memory.end_step()


def positions(memory, layer, head):
    return memory.entries(layer, head).positions.tolist()


def told(memory, layer, head):
    return [round(float(x) - 0.5 * layer - 1000 * head) for x in memory.entries(layer, head).k[:, 0]]


def cut(memory, layer, head, sink, recent, held=None):
    held = held or memory.entries(layer, head)
    if len(held.positions) > sink + recent:
        ends = torch.arange(len(held.positions))
        held = held.take(torch.cat((ends[:sink], ends[len(ends) - recent :])))
    memory.keep(layer, head, held, sink=sink, slide=recent)


@pytest.mark.parametrize("weighted", [True, False])
def test_what_leaves_a_window_is_averaged_into_the_virtual_entry(weighted):
    memory = PagedCache(pool(), L, G)
    feed(memory, 12)
    held = memory.entries(0, 0)
    k, v = held.k[2:8].mean(0, keepdim=True), held.v[2:8].mean(0, keepdim=True)
    kept = held.take(torch.tensor([0, 1, 8, 9, 10, 11])).weigh()
    with_mean = kept.join(k, v, torch.tensor([-1]), float(np.log(6)) if weighted else 0.0)
    memory.keep(0, 0, with_mean, sink=2, slide=4, absorbed=6, weighted=weighted)
    for _ in range(9):
        step(memory)
    now = memory.entries(0, 0)
    virtual = now.positions == -1
    assert sorted(now.positions.tolist()) == [-1, 0, 1, 17, 18, 19, 20]
    assert torch.allclose(now.k[virtual][0], torch.arange(2.0, 17).mean().expand(D))
    assert float(now.log_weight[virtual]) == pytest.approx(np.log(15) if weighted else 0.0)
    assert float(now.log_weight[~virtual].abs().sum()) == 0
    with pytest.raises(ValueError, match="window of 3"):
        memory.keep(0, 1, memory.entries(0, 1), sink=1, slide=3)


def test_memory_really_goes_back_to_the_system():
    big = PagePool(4096, 64, 64, torch.float32)
    memory = PagedCache(big, 1, 1)
    k = torch.ones(1, 64 * 1024, 64)

    def resident():
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

    before = resident()
    memory.append(0, (0,), k, k)
    assert resident() - before > 30e6
    assert float(big.keys[5, 0]) == 1
    memory.close()
    assert resident() - before < 4e6
    assert float(big.keys[5, 0]) == 0, "the page came back from the system, zeroed"


def test_addresses_are_no_memory_for_the_kernels_limit():
    """A server with a small limit could not load its model, and one with a larger no third type of cache."""
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    bounded = read_proc_bytes("status", "VmData:") + 300 * 2**20
    resource.setrlimit(resource.RLIMIT_DATA, (bounded, hard))
    try:
        kept = PagePool(100_000, 16, 64, torch.float32)
        assert all(kept.open_packed(bits).addresses for bits in CACHE_FORMATS)
        with pytest.raises(MemoryError):
            bytearray(2**30)
        del kept
        assert resource.getrlimit(resource.RLIMIT_DATA)[0] == bounded
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def test_small_pages_go_back_with_the_last_of_a_page_of_the_system():
    small = PagePool(64, 16, 16, torch.float32)  # 1 KB each: four are one page of the system
    first = small.reserve(8)
    pages = np.arange(first, first + 8)
    small.commit(pages)
    small.keys[first * 16 : (first + 8) * 16] = 1
    small.release(pages[1:4])
    assert float(small.keys[first * 16 + 20, 0]) == 1, "its neighbour still lies in the same page of the system"
    small.release(pages[:1])
    assert float(small.keys[first * 16 + 20, 0]) == 0
    assert float(small.keys[(first + 4) * 16, 0]) == 1, "what is held stays"


class Pages(RuleBasedStateMachine):
    """Sequences that open, read, decode, cut, fork and close in any order, in a pool that is too small for all."""

    sequences = Bundle("sequences")

    def __init__(self):
        super().__init__()
        self.pool = pool(capacity=160)
        self.live = {}
        self.count = 0

    def attempt(self, deed):
        """Do something that may find the pool full; a sequence that was caught half way is closed, as engines do."""
        try:
            return deed()
        except PoolExhausted:
            return None

    @rule(target=sequences, room=st.integers(0, 20))
    def open(self, room):
        memory = PagedCache(self.pool, L, G)
        if self.attempt(lambda: memory.reserve(np.full((L, G), room)) or True) is None:
            memory.close()
        self.live[memory] = {}
        return memory

    @rule(memory=sequences, T=st.integers(1, 7))
    def read(self, memory, T):
        if memory in self.live and self.attempt(lambda: feed(memory, T, self.live[memory]) or True) is None:
            memory.close()
            del self.live[memory]

    @rule(memory=sequences)
    def decode(self, memory):
        if memory in self.live:
            self.attempt(lambda: step(memory))

    @rule(memory=sequences, layer=st.integers(0, L - 1), head=st.integers(0, G - 1), recent=st.integers(1, 4))
    def cut(self, memory, layer, head, recent):
        if memory in self.live and memory.length > 1 and (layer, head) not in self.live[memory]:
            if self.attempt(lambda: cut(memory, layer, head, 1, recent) or True) is None:
                memory.close()
                del self.live[memory]
            else:
                self.live[memory][layer, head] = recent

    @rule(target=sequences, memory=sequences)
    def fork(self, memory):
        if memory not in self.live or (twin := self.attempt(memory.fork)) is None:
            return PagedCache(self.pool, L, G)
        self.live[twin] = dict(self.live[memory])
        return twin

    @rule(memory=consumes(sequences))
    def close(self, memory):
        if memory in self.live:
            memory.close()
            del self.live[memory]

    @precondition(lambda self: self.live)
    @invariant()
    def everybody_reads_their_own_entries(self):
        for memory, cuts in self.live.items():
            for layer, head in np.ndindex(L, G):
                found = told(memory, layer, head)
                assert sorted(found) == sorted(positions(memory, layer, head))
                n = memory.length
                if (recent := cuts.get((layer, head))) is None:
                    assert found == list(range(n))
                else:
                    assert {0, *range(max(n - recent, 0), n)} >= set(found) >= set(range(max(n - 1, 0), n))

    @invariant()
    def pages_balance(self):
        held = [memory.pages() for memory in self.live]
        every = np.concatenate(held) if held else np.zeros(0, int)
        assert self.pool.held == len(np.unique(every))
        assert (self.pool.references(np.unique(every)) == np.unique(every, return_counts=True)[1]).all()

    def teardown(self):
        for memory in self.live:
            memory.close()
        assert self.pool.held == 0


TestPages = Pages.TestCase
TestPages.settings = settings(stateful_step_count=25)
