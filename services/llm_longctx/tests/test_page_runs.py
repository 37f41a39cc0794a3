"""Page runs, page stores and ranges of addresses alone, where every number can be counted by hand."""

import numpy as np
import pytest
import torch

from fovea.errors import InvalidOption
from services.llm_longctx.kv_cache import PagePool, PoolExhausted
from services.llm_longctx.kv_cache.allocator.page_runs import PageRuns
from services.llm_longctx.kv_cache.allocator.range_allocator import RangeAllocator

P = 4


def open_pool(pages=40):
    return PagePool(pages, P, 2, torch.float32)


def open_runs(pages=40, entries=None):
    """Runs of 2 layers and 3 heads, with room for so many entries each."""
    runs = PageRuns(open_pool(pages), 2, 3)
    if entries is not None:
        runs.reserve(np.array(entries))
    return runs


def fill(runs, layer, head):
    keys = runs.view(runs.pool.keys, layer, head)
    keys[:] = (100.0 * head + torch.arange(len(keys)))[:, None]


def read(runs, layer, head):
    return runs.view(runs.pool.keys, layer, head)[:, 0].tolist()


def free_addresses(runs):
    return runs.pool._addresses.free


def test_runs_are_reserved_side_by_side_and_once():
    runs = open_runs(entries=[[5, 0, 4], [9, 1, 0]])
    assert (runs.start.tolist(), free_addresses(runs)) == ([[0, 8, 8], [12, 24, 28]], 120 - 7)
    runs.reserve(np.full((2, 3), 4))
    assert (runs.start.tolist(), free_addresses(runs)) == ([[0, 28, 8], [12, 24, 32]], 120 - 9)
    assert (runs.held, runs.pool.held) == (0, 0)


def test_entries_are_counted_where_they_are_added():
    runs = open_runs(entries=[[8, 8, 8], [8, 8, 8]])
    runs.extend(0, (0, 2), 3)
    runs.extend(1, (1,), 5)
    assert runs.n.tolist() == [[3, 0, 3], [0, 5, 0]]
    assert (runs.held, runs.pool.held, runs.pool.budget.held) == (4, 4, 4 * P * 16)
    assert (runs.pages().tolist(), runs.pages(1, 1).tolist()) == ([0, 4, 8, 9], [8, 9])
    assert runs.pages(0, 1).tolist() == []


def test_a_run_that_outgrows_its_addresses_moves_with_its_entries_to_twice_the_room():
    runs = open_runs(entries=[[8, 8, 0], [0, 0, 0]])
    runs.extend(0, (0, 1), 8)
    fill(runs, 0, 0)
    assert runs.start[0, 0] == 0
    runs.extend(0, (0,), 1)
    assert (runs.start[0, 0], runs.n[0, 0]) == (16, 9)
    assert (read(runs, 0, 0)[:8], runs.pages(0, 0).tolist()) == (list(range(8)), [4, 5, 6])
    assert (runs.held, runs.pool.held) == (5, 5)
    assert free_addresses(runs) == 120 - 2 - 4
    runs.extend(0, (0,), 7)
    assert runs.start[0, 0] == 16, "there was room for four pages"
    runs.extend(0, (0,), 30)
    assert runs.n[0, 0] == 46
    assert free_addresses(runs) == 120 - 2 - 12, "as many as are needed, if that is more than twice"
    runs.close()
    assert (runs.held, runs.pool.held, free_addresses(runs)) == (0, 0, 120)


def test_the_addresses_of_a_run_that_moved_serve_others():
    runs = open_runs(entries=[[12, 4, 0], [0, 0, 0]])
    runs.extend(0, (0, 1), 4)
    runs.extend(0, (0,), 9)
    assert runs.start[0, 0] == 16
    assert runs.pool.reserve(3) == 0


def test_steps_make_room_a_page_at_a_time():
    runs = open_runs(entries=[[4, 4, 8], [4, 4, 4]])
    runs.extend(0, (0, 1, 2), 3)
    growing = np.array([[True, False, True], [False, True, False]])
    assert runs.pages_to_advance(growing) == 1
    runs.advance(growing)
    assert runs.n.tolist() == [[4, 3, 4], [0, 1, 0]]
    assert (runs.held, runs.pages_to_advance(growing)) == (4, 2)
    fill(runs, 0, 0)
    runs.advance(growing)
    assert runs.n.tolist() == [[5, 3, 5], [0, 2, 0]]
    assert runs.start[0, 2] == 8, "it had a second page"
    assert runs.start[0, 0] == 28, "it moved behind the others"
    assert read(runs, 0, 0)[:4] == [0, 1, 2, 3]
    assert (runs.held, runs.pool.held) == (6, 6)
    assert free_addresses(runs) == 120 - 7 + 1 - 4, "for twice the pages after this one"
    assert runs.pool.references(runs.pages()).tolist() == [1] * 6
    runs.close()
    assert (runs.pool.held, free_addresses(runs)) == (0, 120)


def test_growth_is_foreseen_in_pages():
    runs = open_runs(entries=[[20, 20, 20], [0, 0, 0]])
    runs.extend(0, (0, 1), 3)
    assert runs.pages_needed(np.array([[1, 2, 1], [0, 0, 0]])) == 2
    assert runs.pages_needed(np.array([[5, 6, 4], [5, 0, 0]])) == 1 + 2 + 1 + 2
    runs.retract(0)
    runs.n[0, 0] = 0  # as while a head is rebuilt: it holds more than it needs
    assert runs.pages_needed(np.array([[1, 0, 0], [0, 0, 0]])) == 0


def test_a_step_in_a_full_pool_counts_nothing():
    runs = open_runs(pages=2, entries=[[4, 4, 0], [0, 0, 0]])
    runs.extend(0, (0, 1), 4)
    with pytest.raises(PoolExhausted, match="128 of 128 bytes are held, and 1 more pages of 64 are wanted"):
        runs.advance(np.array([[True, False, False], [False, False, False]]))
    assert runs.n.tolist() == [[4, 4, 0], [0, 0, 0]]
    assert (runs.held, runs.pool.held, runs.pool.free) == (2, 2, 0)


def test_entries_come_off_the_end_and_their_pages_go_back():
    runs = open_runs(entries=[[12, 12, 12], [12, 12, 12]])
    for layer in (0, 1):
        runs.extend(layer, (0, 1, 2), 9)
    fill(runs, 1, 2)
    runs.retract(1)
    assert (runs.held, runs.n.tolist()) == (12, [[8] * 3] * 2)
    runs.retract(3)
    assert (runs.held, runs.pool.held) == (12, 12)
    runs.retract(1)
    assert (runs.held, runs.pool.held, free_addresses(runs)) == (6, 6, 120 - 18)
    assert read(runs, 1, 2) == [200, 201, 202, 203]
    runs.extend(1, (2,), 4)
    assert runs.pages(1, 2).tolist() == [15, 16]
    runs.close()
    assert free_addresses(runs) == 120


@pytest.mark.parametrize(("entries", "room", "pages", "addresses"), [(3, 10, 1, 3), (9, 2, 3, 3), (4, 4, 1, 1)])
def test_a_head_begins_anew_with_room_to_grow(entries, room, pages, addresses):
    runs = open_runs(entries=[[8, 4, 0], [0, 0, 0]])
    runs.extend(0, (0, 1), 4)
    runs.replace(0, 0, entries, room)
    assert (runs.n[0, 0], len(runs.pages(0, 0)), runs.pool.held) == (entries, pages, pages + 1)
    assert free_addresses(runs) == 120 - 1 - addresses
    assert (runs.start[0, 0], runs.n[0, 1]) == (12 if addresses > 2 else 0, 4)


def test_the_first_pages_of_a_head_go_alone():
    runs = open_runs(entries=[[4, 12, 0], [0, 0, 0]])
    runs.extend(0, (1,), 11)
    fill(runs, 0, 1)
    runs.drop_front(0, 1, 2)
    assert read(runs, 0, 1) == [108, 109, 110]
    assert (runs.start[0, 1], runs.held, runs.pool.held) == (12, 1, 1)
    assert runs.pool.reserve(2) == 1
    runs.extend(0, (1,), 2)
    assert read(runs, 0, 1)[:3] == [108, 109, 110]
    assert runs.start[0, 1] > 12, "its room went with its pages"


def test_a_copy_of_runs_leaves_out_the_first_entries_of_each_head():
    runs = open_runs()
    for layer, head, count in ((0, 0, 6), (0, 1, 6), (1, 2, 3)):
        runs.extend(layer, (head,), count)
        fill(runs, layer, head)
    twin = PageRuns(runs.pool, 2, 3)
    twin.copy(runs, np.array([[2, 6, 0], [0, 0, 1]]))
    assert twin.n.tolist() == [[4, 0, 0], [0, 0, 2]]
    assert (read(twin, 0, 0), read(twin, 1, 2)) == ([2, 3, 4, 5], [201, 202])
    assert (read(runs, 0, 0), runs.pool.held) == ([0, 1, 2, 3, 4, 5], 2 + 2 + 1 + 1 + 1)


def test_heads_lie_together_where_they_are_equally_long_and_spaced():
    runs = open_runs(entries=[[8, 8, 8], [4, 8, 4]])
    runs.extend(0, (0, 1, 2), 5)
    runs.extend(1, (0, 1, 2), 3)
    for head in range(3):
        fill(runs, 0, head)
    keys = runs.pool.keys
    for heads in ((0, 1, 2), (0, 2), (1,)):
        found = runs.together(keys, 0, heads)
        assert found.shape == (len(heads), 5, 2)
        assert [each[:, 0].tolist() for each in found] == [read(runs, 0, head) for head in heads]
        assert torch.equal(found[..., 0], found[..., 1])
    assert runs.together(keys, 0, (2, 1)) is None, "backwards"
    assert runs.together(keys, 1, (0, 1, 2)) is None, "spaced by one page, then by two"
    runs.extend(0, (1,), 1)
    assert runs.together(keys, 0, (0, 1)) is None, "of two lengths"
    assert runs.together(keys, 0, (0, 0)).shape == (2, 5, 2)


def test_a_move_needs_no_room_for_what_it_leaves_but_does_for_what_others_hold():
    runs = open_runs(pages=3, entries=[[8, 0, 0], [0, 0, 0]])
    runs.extend(0, (0,), 8)
    shared = runs.pages(0, 0)
    runs.extend(0, (0,), 1)
    assert (runs.start[0, 0], runs.pool.held) == (8, 3)
    runs = open_runs(pages=3, entries=[[8, 0, 0], [0, 0, 0]])
    runs.extend(0, (0,), 8)
    runs.pool.share(shared)
    with pytest.raises(PoolExhausted):
        runs.extend(0, (0,), 1)
    assert (runs.start[0, 0], runs.n[0, 0], runs.pool.held, free_addresses(runs)) == (0, 8, 2, 7)
    runs.close()
    assert (runs.pool.held, free_addresses(runs)) == (2, 7), "another still holds them"
    runs.pool.release(shared)
    assert (runs.pool.held, free_addresses(runs)) == (0, 9)


def test_a_store_counts_who_holds_its_pages():
    pool = open_pool(4)
    assert (pool.addresses, pool.free, pool.page_bytes, pool.capacity) == (12, 4, 64, 4)
    assert [pool.pages_for(entries) for entries in (0, 1, 4, 5)] == [0, 1, 1, 2]
    pages = np.arange(4) + pool.reserve(4)
    pool.commit(pages)
    assert (pool.held, pool.free, pool.budget.held) == (4, 0, 256)
    for shared in (pages[:2], pages[:1]):
        pool.share(shared)
    assert pool.references(pages).tolist() == [3, 2, 1, 1]
    pool.release(pages[:1])
    with pytest.raises(ValueError, match=r"^a page that others hold can't be taken back$"):
        pool.uncommit(pages[1:3])
    pool.uncommit(pages[3:])
    assert (pool.references(pages).tolist(), pool.held) == ([2, 2, 1, 0], 3)
    pool.unreserve(3, 1)
    pool.release(pages[:3])
    assert (pool.references(pages).tolist(), pool.held, pool.free) == ([1, 1, 0, 0], 2, 2)
    with pytest.raises(ValueError, match=r"^a page is released that nobody holds$"):
        pool.release(pages[1:3])
    assert pool.reserve(3) == 2
    with pytest.raises(PoolExhausted, match=r"^no run of 8 pages is free$"):
        pool.reserve(8)
    assert pool.reserve(7) == 5


def test_pages_of_two_runs_are_released_at_once():
    pool = open_pool(8)
    pool.reserve(6)
    pool.commit(np.arange(6))
    pool.release(np.array([4, 0, 1, 5]))
    assert pool.held == 2
    assert [pool.reserve(2), pool.reserve(2)] == [0, 4]


def test_a_copy_takes_all_that_belongs_to_an_entry():
    pool = open_pool(4)
    for number, store in enumerate((pool.keys, pool.values, pool.positions, pool.log_weights)):
        store[2:4] = torch.tensor([10, 20], dtype=store.dtype).view(2, *[1] * (store.dim() - 1)) + number
    pool.copy(slice(2, 4), 8, 2)
    assert pool.keys[8:11].tolist() == [[10, 10], [20, 20], [0, 0]]
    assert pool.values[8:11].tolist() == [[11, 11], [21, 21], [0, 0]]
    assert (pool.positions[8:11].tolist(), pool.log_weights[8:11].tolist()) == ([12, 22, 0], [13, 23, 0])


@pytest.mark.parametrize(("dtype", "weights"), [
    (torch.float64, torch.float64), (torch.float32, torch.float32), (torch.bfloat16, torch.float32),
])  # fmt: skip
def test_stores_have_the_decoder_s_type_and_weights_a_wide_one(dtype, weights):
    pool = PagePool(5, P, 3, dtype)
    assert (pool.keys.dtype, pool.values.dtype, pool.log_weights.dtype) == (dtype, dtype, weights)
    assert pool.positions.dtype == torch.int64
    assert pool.keys.shape == pool.values.shape == (60, 3)
    assert pool.positions.shape == pool.log_weights.shape == (60,)
    assert pool.page_bytes == P * 2 * 3 * dtype.itemsize


def test_stores_of_few_bits_share_the_budget_and_are_made_once():
    pool = PagePool(8, 16, 64, torch.float32)
    assert pool.packed_stores() == {}
    store = pool.open_packed(4)
    assert pool.open_packed(4) is store
    assert pool.packed_stores() == {4: store}
    assert store.budget is pool.budget
    assert (store.page, store.log_weights.dtype) == (16, torch.float32)
    assert store.page_bytes < pool.page_bytes / 4
    store.reserve(1)
    store.commit(np.array([0]))
    assert pool.free == 7
    with pytest.raises(InvalidOption, match="needs pages of 16 entries, and this engine's have 4") as caught:
        open_pool().open_packed(4)
    assert caught.value.field == "kv_cache_dtype"


def test_ranges_are_handed_out_first_fit_and_join_where_they_touch():
    addresses = RangeAllocator(10)
    assert [addresses.take(3), addresses.take(3), addresses.take(4)] == [0, 3, 6]
    assert (addresses.take(1), addresses.free) == (None, 0)
    addresses.give(0, 3)
    addresses.give(6, 3)
    assert addresses._free == [(0, 3), (6, 9)]
    assert addresses.take(4) is None
    assert addresses.take(2) == 0
    addresses.give(4, 1)
    assert addresses._free == [(2, 3), (4, 5), (6, 9)]
    addresses.give(5, 1)
    assert addresses._free == [(2, 3), (4, 9)]
    addresses.give(3, 1)
    assert addresses._free == [(2, 9)]
    for begin, count in ((1, 2), (8, 2), (4, 1), (2, 1)):
        with pytest.raises(ValueError, match=rf"^numbers {begin} … {begin + count - 1} are given back twice$"):
            addresses.give(begin, count)
    addresses.give(0, 1)
    addresses.give(9, 1)
    addresses.give(1, 1)
    assert addresses._free == [(0, 10)]
    assert RangeAllocator(0).take(1) is None
