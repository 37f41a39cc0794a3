"""The scheduler under pressure: preemption, priorities, cancellation, and prefixes that are read once."""

import pytest
import torch

from services.llm_longctx.engine import Engine, GenerationRequest, Sampling
from services.llm_longctx.engine.attention.method_policy import Policy
from services.llm_longctx.methods import method
from services.llm_longctx.tests.conftest import Ear, most_running
from services.llm_longctx.tests.hooks import Listeners
from services.llm_longctx.tests.test_engine_pages import ACT, DUO, POWER, RAZOR, RECYCLED, TINY_PLAN, prompt
from shared.lm.builders import llama

STREAMING = method("duo", sink=2, recent=5, roles=[[0, 0], [0, 0]])


@pytest.fixture(scope="module")
def long():
    torch.manual_seed(0)
    return llama(vocab=64, width=16, layers=2, heads=4, kv_heads=2, hidden=16, positions=4096).eval()


def ask(engine, ids, how="dense", n=1, new=8, **facts):
    ears = [Ear() for _ in range(n)]
    temperature = facts.pop("temperature", 0)
    samplings = [Sampling(temperature=temperature, seed=i) for i in range(n)]
    policy = engine.policy_of(how, TINY_PLAN)
    return GenerationRequest(ids, samplings, new, policy=policy, hooks=Listeners(*ears), **facts), ears


def run(engine, *requests, limit=4000):
    for one, _ in requests:
        engine.scheduler.add_request(one)
    for _ in range(limit):
        if not engine.scheduler.in_flight:
            return
        engine.scheduler.step()
    pytest.fail("the scheduler does not come to an end")


def test_a_pool_admits_more_of_those_who_hold_less(tiny):
    def most(how):
        engine = Engine(tiny, page=8, max_batch=64, kv_bytes=400 * 8 * 2 * 8 * 8)
        asked = [ask(engine, prompt(120, i), how, new=30) for i in range(20)]
        for one, _ in asked:
            engine.scheduler.add_request(one)
        peak = most_running(engine.scheduler)
        assert all(ear.ids for _, (ear,) in asked)
        return peak

    dense, streaming = most(method("dense")), most(STREAMING)
    assert dense <= 7
    assert streaming >= 2.5 * dense


@pytest.mark.parametrize("n", [1, 63, 64, 65, 511, 512, 513, 1100])
def test_chunks_end_on_the_grid_or_with_the_prompt(long, n):
    def borders(how, read=0):
        ends = []
        policy = Policy.of(long.config, how, TINY_PLAN)
        while read < n:
            read += policy.next_chunk(read, n)
            ends.append(read)
        return ends

    assert borders(method("dense")) == borders(DUO) == [*range(512, n, 512), n]
    if n > 64:
        assert borders(method("dense"), 64) == [*range(512, n, 512), n], "a cached prefix joins the same grid"
    single = type("Single", (type(ACT),), {"supports": type(ACT.supports)(chunked_prefill=False), "name": "single"})
    assert borders(single()) == [n]


@pytest.mark.parametrize(
    "how", [method("dense"), POWER.with_knobs(block=64), RAZOR, RECYCLED, DUO], ids=lambda m: m.name
)
def test_a_prefix_that_was_read_is_not_read_again_and_changes_no_bit_of_the_prompts_logits(long, how):
    ids = [(11 * i + i * i) % 64 for i in range(1094)]
    cold, warm = Engine(long), Engine(long)
    run(warm, ask(warm, ids[:1024] + [5] * 9, how, new=1))
    hits = []
    for engine in (cold, warm):
        one = ask(engine, ids, how, new=6, top_logprobs=3)
        run(engine, one)
        hits.append((one[1][0].tokens, one[0].stats.cached_tokens))
    assert [cached for _, cached in hits] == [0, 1024]
    (first_cold, *later_cold), (first_warm, *later_warm) = (tokens for tokens, _ in hits)
    assert (first_cold.logprob, first_cold.top) == (first_warm.logprob, first_warm.top), "bit for bit"
    # Decoding merges shared pages with own ones where the cold run has one run of pages: the same sums in other order.
    assert [t.id for t in later_cold] == [t.id for t in later_warm]
    assert [t.logprob for t in later_cold] == pytest.approx([t.logprob for t in later_warm], abs=1e-5)


@pytest.mark.parametrize("n", [15, 16, 33])
def test_answers_that_share_a_prompt_are_compared_with_dense_ones_that_do(long, n):
    engine = Engine(long)
    dense, streaming = ask(engine, [5] * n, n=4, new=40), ask(engine, [5] * n, STREAMING, n=4, new=40)
    run(engine, dense, streaming)
    assert (dense[0].stats.kv_ratio, streaming[0].stats.kv_bytes_dense) == (1, dense[0].stats.kv_bytes)
    assert streaming[0].stats.kv_ratio < 1


def test_what_is_read_again_after_a_preemption_does_not_count_as_cached_or_not(long):
    engine = Engine(long, kv_bytes=1)
    run(engine, ask(engine, [5] * 500, new=1))
    asked = [ask(engine, [5] * 500 + [i], new=1200) for i in range(4)]
    run(engine, *asked, limit=12_000)
    assert sum(request.stats.preempted for request, _ in asked) > 0, "the pool is too large for this test"
    assert {request.stats.cached_tokens for request, _ in asked} == {496}


def test_cached_prefixes_give_way_before_anybody_is_preempted(long):
    engine = Engine(long, kv_bytes=1)
    asked = [ask(engine, [i] * 1500, new=2) for i in range(6)]
    for one in asked:
        run(engine, one)
        assert one[0].stats.preempted == 0
        assert engine.pool.held <= engine.pool.capacity
    assert len(engine.prefix_cache) > 0
    again = ask(engine, [5] * 1500, new=2)
    run(engine, again)
    assert again[0].stats.cached_tokens > 0, "the latest is still there"
    gone = ask(engine, [0] * 1500, new=2)
    run(engine, gone)
    assert gone[0].stats.cached_tokens == 0, "the first went first"
    engine.scheduler.close()
    assert engine.pool.held == 0
