"""The prefix cache alone: which prefix is found, what is kept and what goes first, on caches that only count tokens."""

from types import SimpleNamespace

import numpy as np
import pytest

from fovea.errors import InvalidOption
from services.llm_longctx.engine.attention.method_policy import CHUNK
from services.llm_longctx.engine.prefix_cache import PrefixCache
from services.llm_longctx.kv_cache import PoolExhausted


class Pages:
    """A cache of `length` tokens, one page of 2 tokens each; what is kept of it takes pages from a pool of ten."""

    def __init__(self, pool, length, cut=False):
        self.pool, self.length, self.cut = pool, length, np.array([False, cut])

    def prefix(self, end):
        if self.pool.refuses:
            raise PoolExhausted
        self.pool.free -= 1
        return Pages(self.pool, end)

    def fork(self):
        return self.prefix(self.length)

    def close(self):
        self.pool.free += 1


class Run:
    """A sequence: what it has read, and under which method."""

    def __init__(self, pool, length=0, **method):
        facts = {"reuse": True, "invariant": True, "unread": 0, "cut_at_end": False, "print": "dense", "cut": False}
        facts |= method
        self.cache, self.memos = Pages(pool, length, facts["cut"]), ["memo"]
        how = SimpleNamespace(min_uncached_tokens=facts["unread"], cut_at_end=facts["cut_at_end"])
        how.supports = SimpleNamespace(prefix_reuse=facts["reuse"])
        self.policy = SimpleNamespace(method=how, is_chunk_invariant=facts["invariant"])
        self.policy.fingerprint = lambda *model: f"{facts['print']} {model}"

    def resume(self, cache, memos):
        self.cache, self.memos = cache, list(memos)


@pytest.fixture
def pool():
    return SimpleNamespace(page=2, free=10, refuses=False)


@pytest.fixture
def cache(pool):
    model = SimpleNamespace(output_matrix=SimpleNamespace(dtype="float32"))
    return PrefixCache(SimpleNamespace(pool=pool, model=model, weights_sha256="abc", backend="torch"), 4)


def ask(ids, salt="", digest=None, first_captured=99, **facts):
    taps = digest and SimpleNamespace(digest=lambda count: f"{digest} {count}", first_captured=first_captured)
    defaults = {"boundaries": None, "score_prompt": False, "score_from": 0, "taps": taps, "adapter": None}
    return SimpleNamespace(prompt_ids=list(ids), run=SimpleNamespace(cache_salt=salt), **defaults | facts)


def read(cache, pool, ids, length=None, method=None, **facts):
    cache.add(Run(pool, len(ids) if length is None else length, **method or {}), ask(ids, **facts))


def found(cache, pool, ids, method=None, **facts):
    run = Run(pool, **method or {})
    tokens = cache.attach(run, ask(ids, **facts))
    assert tokens == run.cache.length
    return tokens


def test_blocks_are_whole_pages(cache, pool):
    with pytest.raises(InvalidOption) as refused:
        PrefixCache(cache._runner, 5)
    assert refused.value.detail == "Cached prefixes grow by whole pages of 2 tokens, not by 5."
    assert refused.value.field == "prefix_block"


@pytest.mark.parametrize(("length", "tokens"), [(3, 0), (4, 4), (7, 4), (8, 8), (11, 8)])
def test_whole_blocks_of_what_was_read_are_kept(cache, pool, length, tokens):
    read(cache, pool, range(20), length)
    assert len(cache) == tokens // 4
    assert found(cache, pool, range(20)) == tokens


@pytest.mark.parametrize(("ids", "facts", "tokens"), [
    (range(13), {}, 12),
    (range(12), {}, 8),  # the last token is read in any case: its logits are needed
    (range(11), {}, 8), ([0, 1, 2, 3, 4, 9, 6, 7, 8], {}, 4), ([9, 1, 2, 3, 4], {}, 0),
    (range(13), {"digest": "steered"}, 0), (range(13), {"score_prompt": True}, 0),
    (range(13), {"score_prompt": True, "score_from": 9}, 8), (range(13), {"score_prompt": True, "score_from": 8}, 4),
    (range(13), {"boundaries": [4]}, 0), (range(13), {"method": {"unread": 2}}, 8),
    (range(14), {"method": {"unread": 2}}, 12), (range(13), {"method": {"reuse": False}}, 0),
    (range(13), {"method": {"print": "other"}}, 0),
])  # fmt: skip
def test_the_longest_prefix_of_the_same_beginning_is_found(cache, pool, ids, facts, tokens):
    read(cache, pool, range(12))
    assert found(cache, pool, ids, **facts) == tokens


@pytest.mark.parametrize(("first_captured", "tokens"), [(12, 12), (11, 8), (8, 8), (7, 4)])
def test_captured_tokens_are_read(cache, pool, first_captured, tokens):
    steered = {"digest": "up", "first_captured": first_captured}
    read(cache, pool, range(13), 12, **steered)
    assert found(cache, pool, range(13), **steered) == tokens


def test_the_model_and_its_backend_are_part_of_the_key(cache, pool):
    read(cache, pool, range(8))
    seen = []
    run = Run(pool)
    run.policy.fingerprint = lambda *facts: seen.append(facts)
    cache.attach(run, ask(range(9)))
    assert seen == [("abc", "float32", "torch")]


def test_a_memo_goes_with_its_prefix(cache, pool):
    read(cache, pool, range(8))
    run = Run(pool)
    run.memos = []
    cache.attach(run, ask(range(9)))
    assert run.memos == ["memo"]


@pytest.mark.parametrize(("method", "facts", "kept"), [
    ({"reuse": False}, {}, 0), ({}, {"boundaries": [4]}, 0), ({"cut_at_end": True, "cut": True}, {}, 0),
    ({"cut_at_end": True}, {}, 2), ({"cut": True}, {}, 2),
])  # fmt: skip
def test_what_others_can_not_use_is_not_kept(cache, pool, method, facts, kept):
    read(cache, pool, range(8), method=method, **facts)
    assert len(cache) == kept


def test_a_method_whose_chunks_count_keeps_whole_chunks_as_they_were_read(cache, pool):
    ids, chunks = range(2 * CHUNK + 1), {"invariant": False}
    read(cache, pool, ids, CHUNK + 1, method=chunks)
    assert len(cache) == 0
    read(cache, pool, ids, CHUNK, method=chunks)
    read(cache, pool, ids, 2 * CHUNK, method=chunks)
    assert len(cache) == 2
    assert found(cache, pool, ids, method=chunks) == 2 * CHUNK
    read(cache, pool, range(1, CHUNK + 1), CHUNK, method=chunks)  # its end is the prompt's
    assert len(cache) == 2
    assert found(cache, pool, ids) == 0, "others have other borders"


def test_the_leaf_that_was_used_longest_ago_goes_first(cache, pool):
    ann, bob = range(8), [0, 1, 2, 3, 9, 9, 9, 9]
    read(cache, pool, ann)
    read(cache, pool, bob)
    read(cache, pool, range(20, 24))
    assert (len(cache), pool.free) == (4, 6)
    assert found(cache, pool, [*ann, 1]) == 8
    pool.free = 0  # the fork of the line above is another's
    assert cache.make_room(0) is True
    assert len(cache) == 4
    assert cache.make_room(1) is True
    assert (found(cache, pool, [*bob, 1]), found(cache, pool, [*ann, 1])) == (4, 8)
    pool.free = 0
    assert cache.make_room(1) is True
    assert found(cache, pool, range(20, 25)) == 0
    pool.free = 0
    assert cache.make_room(2) is True  # the chain from its end
    assert (len(cache), pool.free) == (0, 2)
    assert cache.make_room(3) is False


def test_a_pool_without_room_keeps_and_lends_nothing(cache, pool):
    read(cache, pool, range(8))
    pool.refuses = True
    run = Run(pool)
    assert cache.attach(run, ask(range(9))) == 0
    assert run.cache.length == 0
    read(cache, pool, range(30, 38))
    assert len(cache) == 2


def test_clear_gives_all_back(cache, pool):
    read(cache, pool, range(12))
    assert pool.free == 7
    cache.clear()
    assert (len(cache), pool.free) == (0, 10)
    assert found(cache, pool, range(13)) == 0


def test_a_beginning_stays_while_any_prompt_goes_on_from_it(cache, pool):
    prompts = [[0, 1, 2, 3, *[tail] * 4] for tail in (7, 8, 9)]
    for ids in prompts:
        read(cache, pool, ids)
    for left in (3, 2, 1):
        pool.free = 0
        assert cache.make_room(1) is True
        assert len(cache) == left
        assert found(cache, pool, [*prompts[-1], 1]) == (8 if left > 1 else 4)
    pool.free = 0
    assert cache.make_room(1) is True
    assert len(cache) == 0


def test_interventions_count_as_far_as_the_prefix_goes(cache, pool):
    seen = []
    request = ask(range(9), digest="up")
    request.taps.digest = lambda count: str(seen.append(count))
    cache.attach(Run(pool), request)
    assert seen == [4], "the first block is unknown, so no longer prefix is looked up"


def test_prefixes_of_another_tenant_are_never_met(cache, pool):
    read(cache, pool, range(8), salt="alice")
    assert [found(cache, pool, range(9), salt=who) for who in ("alice", "bob", "")] == [8, 0, 0]


def test_a_prefix_belongs_to_the_adapter_under_which_it_was_read(cache, pool):
    one, other = SimpleNamespace(digest="one"), SimpleNamespace(digest="other")
    read(cache, pool, range(8), adapter=one)
    assert [found(cache, pool, range(9), adapter=who) for who in (one, other, None)] == [8, 0, 0]


@pytest.mark.parametrize("method", [{"invariant": True}, {"invariant": False}])
def test_what_cannot_be_kept_still_uses_what_is_known(cache, pool, method):
    block = 4 if method["invariant"] else CHUNK
    old, new = range(4 * block), range(9 * block, 13 * block)
    for ids in (old, new):
        read(cache, pool, ids, block, method)
    pool.refuses = method["invariant"]
    read(cache, pool, old, 3 * block, method)
    pool.refuses = False
    cache.make_room(pool.free + 1)
    assert [found(cache, pool, ids, method) for ids in (old, new)] == [block, 0]
