"""The scheduler under pressure: preemption, priorities, cancellation, and prefixes that are read once."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from services.llm_longctx.engine import Choice, Engine, Order, Request, Sampling, Scheduler
from services.llm_longctx.engine.chunking import next_chunk
from services.llm_longctx.methods import method
from services.llm_longctx.tests.conftest import tiny_decoder
from services.llm_longctx.tests.test_engine import Ear
from services.llm_longctx.tests.test_engine_pages import EVERY, TINY_PLAN, prompt
from services.llm_longctx.tests.toy_methods import Averaging, Copying, Halving, Streaming, Striding
from shared.errors import Cancelled, TooLarge
from shared.lm.builders import llama
from shared.registry import CallContext


@pytest.fixture(scope="module")
def tiny():
    return tiny_decoder().double()


@pytest.fixture(scope="module")
def long():
    """A model whose prompts fill several chunks."""
    torch.manual_seed(0)
    return llama(vocab=64, width=16, layers=2, heads=4, kv_heads=2, hidden=16, positions=4096).eval()


def order(engine, ids, how="dense", n=1, new=8, **facts):
    ears = [Ear() for _ in range(n)]
    choices = [Choice(Sampling(temperature=facts.pop("temperature", 0), seed=i), ear) for i, ear in enumerate(ears)]
    policy = engine.policy_of(how, TINY_PLAN if engine.model.config.vocab == 272 else None)
    return Order(ids, choices, new, policy=policy, **facts), ears


def run(scheduler, *orders, limit=4000):
    for one, _ in orders:
        scheduler.submit(one)
    for _ in range(limit):
        if not scheduler.in_flight:
            return
        scheduler.step()
    pytest.fail("the scheduler does not come to an end")


def alone(model, ids, how, new=8, **facts):
    scheduler = Scheduler(Engine(model, page=8))
    one, ears = order(scheduler.engine, ids, how, new=new, **facts)
    run(scheduler, (one, ears))
    return ears[0].ids


# Pages run out.


def test_when_pages_run_out_the_youngest_answer_is_read_again_and_all_say_the_same(tiny):
    scheduler = Scheduler(Engine(tiny, page=8, kv_bytes=1))
    asked = [order(scheduler.engine, prompt(30 + i, i), how, new=40) for i, how in enumerate(EVERY[:6])]
    run(scheduler, *asked)
    assert sum(one.facts.preempted for one, _ in asked) > 0, "the pool is too large for this test"
    for (one, (ear,)), how in zip(asked, EVERY, strict=False):
        assert ear.ids == alone(tiny, one.ids, how, new=40), how.name
        assert ear.ends == [("length", 40)]
    scheduler.close()
    assert scheduler.engine.pool.held == 0


def test_a_method_may_refuse_to_be_preempted(tiny):
    class Stubborn(Striding):
        """Never gives its pages away."""

        name = "stubborn"
        supports = Striding.supports.__class__(preemption="refuse")

    scheduler = Scheduler(Engine(tiny, page=8, kv_bytes=1))
    other, first = order(scheduler.engine, prompt(40), new=80), order(scheduler.engine, prompt(40), Stubborn(), new=80)
    run(scheduler, other, first)
    assert first[0].facts.preempted == 0
    assert other[0].facts.preempted > 0
    assert other[1][0].ends == first[1][0].ends == [("length", 80)]


def test_what_can_never_fit_is_refused_and_not_tried_for_ever(tiny):
    class Greedy(Copying):
        """Copies everything, at every step."""

        name = "greedy"
        budget: int = 4000
        stride: int = 1

    scheduler = Scheduler(Engine(tiny, page=8, kv_bytes=1))
    one = order(scheduler.engine, prompt(180), Greedy(), new=10)
    run(scheduler, one)
    assert isinstance(one[1][0].reason, TooLarge)
    assert scheduler.engine.pool.held - sum(len(n.memory.pages()) for n in scheduler.prefixes._nodes.values()) <= 0


def test_a_pool_admits_more_of_those_who_hold_less(tiny):
    def most(how):
        scheduler = Scheduler(Engine(tiny, page=8, max_batch=64, kv_bytes=400 * 8 * 2 * 8 * 8))
        asked = [order(scheduler.engine, prompt(120, i), how, new=30) for i in range(20)]
        for one, _ in asked:
            scheduler.submit(one)
        peak = 0
        while scheduler.in_flight:
            scheduler.step()
            peak = max(peak, len(scheduler._running))
        assert all(ear.ids for _, (ear,) in asked)
        return peak

    class AllStreaming(Streaming):
        """No full heads."""

        name = "all-streaming"

        def head_plan(self, config, plan):
            """Whatever the plan says."""
            return super().head_plan(config, None)

    dense, streaming = most(method("dense")), most(AllStreaming())
    assert dense <= 7
    assert streaming >= 2.5 * dense


# Who comes when.


def test_higher_classes_first_then_first_come_first_served(tiny):
    scheduler = Scheduler(Engine(tiny, max_batch=1))
    asked = [order(scheduler.engine, [i + 1], new=2, priority=p) for i, p in enumerate((0, 0, 1, 0, 2))]
    ended = []
    for i, (one, _) in enumerate(asked):
        scheduler.submit(one)
        if not i:
            scheduler.step()
    while scheduler.in_flight:
        scheduler.step()
        ended += [i for i, (_, (ear,)) in enumerate(asked) if ear.ends and i not in ended]
    assert ended == [0, 4, 2, 1, 3]


def test_those_who_wait_are_told_their_place(tiny):
    notes = []
    scheduler = Scheduler(Engine(tiny, max_batch=1))
    first = order(scheduler.engine, [1], new=2)
    second = order(scheduler.engine, [2], new=2)
    third = order(scheduler.engine, [3], new=2, run=CallContext(report=lambda _, note: notes.append(note)))
    run(scheduler, first, second, third)
    assert notes == ["3 in the queue", "2 in the queue", "1 in the queue", "being read"]
    assert third[0].run.note == "being read"


@settings(max_examples=20, deadline=None)
@given(st.data())
def test_whatever_is_cancelled_its_pages_are_free_within_one_step(tiny, data):
    scheduler = Scheduler(Engine(tiny, page=8, max_batch=4, kv_bytes=data.draw(st.sampled_from([1, 2**22]))))
    asked = [
        order(
            scheduler.engine,
            prompt(data.draw(st.integers(1, 60)), i),
            data.draw(st.sampled_from(EVERY)),
            n=data.draw(st.integers(1, 2)),
            new=data.draw(st.integers(0, 20)),
            run=CallContext(),
        )
        for i in range(data.draw(st.integers(1, 6)))
    ]
    for one, _ in asked:
        scheduler.submit(one)
        for _ in range(data.draw(st.integers(0, 3))):
            scheduler.step()
    gone = data.draw(st.lists(st.sampled_from(asked), unique_by=id))
    for one, _ in gone:
        one.run.cancel()
    scheduler.step()
    live = [a.order for a in scheduler._running] + [w.order for w in scheduler._waiting]
    assert not any(one in live for one, _ in gone)
    while scheduler.in_flight:
        scheduler.step()
    for one, ears in asked:
        for ear in ears:
            assert len(ear.ends) == 1
            assert isinstance(ear.reason, Cancelled) or len(ear.ids) == one.max_tokens
    scheduler.prefixes.clear()
    assert scheduler.engine.pool.held == 0


# Prefixes.


@pytest.mark.parametrize("n", [1, 63, 64, 65, 511, 512, 513, 1100])
def test_chunks_end_on_the_grid_or_with_the_prompt(n):
    def borders(how, read=0):
        ends = []
        while read < n:
            read += next_chunk(how, read, n)
            ends.append(read)
        return ends

    assert borders(method("dense")) == borders(Streaming()) == [*range(512, n, 512), n]
    if n > 64:
        assert borders(method("dense"), 64) == [*range(512, n, 512), n], "a cached prefix joins the same grid"
    single = type("Single", (Halving,), {"supports": type(Halving.supports)(chunked_prefill=False), "name": "single"})
    assert borders(single()) == [n]


@pytest.mark.parametrize(
    "how", [method("dense"), Striding(block=64), Averaging(), Copying(), Streaming()], ids=lambda m: m.name
)
@pytest.mark.parametrize("more", [1, 70])
def test_a_prefix_that_was_read_is_not_read_again_and_changes_no_bit_of_the_prompts_logits(long, how, more):
    ids = [(11 * i + i * i) % 64 for i in range(1024 + more)]
    cold, warm = Scheduler(Engine(long)), Scheduler(Engine(long))
    first = order(warm.engine, ids[:1024] + [5] * 9, how, new=1)
    run(warm, first)
    hits = []
    for scheduler in (cold, warm):
        one = order(scheduler.engine, ids, how, new=6, top=3)
        run(scheduler, one)
        hits.append((one[1][0].tokens, one[0].facts.cached_tokens))
    assert [cached for _, cached in hits] == [0, 1024]
    (first_cold, *later_cold), (first_warm, *later_warm) = (tokens for tokens, _ in hits)
    assert (first_cold.logprob, first_cold.top) == (first_warm.logprob, first_warm.top), "bit for bit"
    # Decoding merges shared pages with own ones where the cold run has one run of pages: the same sums in other order.
    assert [t.id for t in later_cold] == [t.id for t in later_warm]
    assert [t.logprob for t in later_cold] == pytest.approx([t.logprob for t in later_warm], abs=1e-5)


def test_the_same_prompt_again_reads_only_its_last_page(long):
    ids = [(5 * i) % 64 for i in range(1000)]
    scheduler = Scheduler(Engine(long))
    answers = []
    for _ in range(2):
        one = order(scheduler.engine, ids, new=5, top=1)
        run(scheduler, one)
        answers.append([(t.id, t.logprob) for t in one[1][0].tokens])
    assert one[0].facts.cached_tokens == 960
    first, again = answers
    assert [token for token, _ in again] == [token for token, _ in first]
    assert [logprob for _, logprob in again] == pytest.approx([logprob for _, logprob in first], abs=1e-5)


def test_prefixes_mix_only_under_one_fingerprint(long):
    ids = [(3 * i) % 64 for i in range(700)]
    scheduler = Scheduler(Engine(long))
    run(scheduler, order(scheduler.engine, ids, "dense", new=1))
    cached = {}
    for how in (Copying(), Averaging(), Striding(block=64), Streaming()):
        one = order(scheduler.engine, ids, how, new=1)
        run(scheduler, one)
        cached[how.name] = one[0].facts.cached_tokens
    assert cached == {"toy-copying": 640, "toy-averaging": 640, "toy-striding": 0, "toy-streaming": 0}
    other = order(scheduler.engine, ids, Striding(block=64, window=3), new=1)
    run(scheduler, other)
    assert other[0].facts.cached_tokens == 0


def test_a_prefix_that_ends_on_a_page_inside_a_chunk_agrees_closely(long):
    ids = [(3 * i + 1) % 64 for i in range(900)]
    scheduler = Scheduler(Engine(long))
    run(scheduler, order(scheduler.engine, ids[:600], new=1))
    one, again = order(scheduler.engine, ids, new=3, top=0), order(Engine(long), ids, new=3, top=0)
    run(scheduler, one)
    run(Scheduler(Engine(long)), again)
    assert one[0].facts.cached_tokens == 576
    assert [t.logprob for t in one[1][0].tokens] == pytest.approx([t.logprob for t in again[1][0].tokens], abs=1e-5)


def test_scores_of_a_prompt_need_its_logits_unless_told_from_where(long):
    ids = [(3 * i + 1) % 64 for i in range(300)]
    scheduler = Scheduler(Engine(long))
    whole, (all_scores,) = order(scheduler.engine, ids, new=0, top=0, score_prompt=True)
    tail, (some,) = order(scheduler.engine, ids, new=0, top=0, score_prompt=True, score_from=280)
    run(scheduler, (whole, None), (tail, None))
    assert (whole.facts.cached_tokens, tail.facts.cached_tokens) == (0, 256)
    assert [t.id for t in all_scores.prompted] == ids[1:]
    assert [t.id for t in some.prompted] == ids[280:]
    assert [t.logprob for t in some.prompted] == pytest.approx([t.logprob for t in all_scores.prompted][279:], abs=1e-5)


def test_answers_of_one_prompt_share_its_pages(long):
    scheduler = Scheduler(Engine(long))
    single = order(scheduler.engine, [1] * 640, new=2)
    run(scheduler, single)
    several, ears = order(scheduler.engine, [2] * 640, n=4, new=2, temperature=1)
    run(scheduler, (several, ears))
    heads = 4
    assert several.facts.kv_bytes <= single[0].facts.kv_bytes + 3 * heads * scheduler.engine.pool.page_bytes
    assert all(len(ear.ids) == 2 for ear in ears)


def test_cached_prefixes_give_way_before_anybody_is_preempted(long):
    scheduler = Scheduler(Engine(long, kv_bytes=1))
    asked = [order(scheduler.engine, [i] * 1500, new=2) for i in range(6)]
    for one in asked:
        run(scheduler, one)
        assert one[0].facts.preempted == 0
        assert scheduler.engine.pool.held <= scheduler.engine.pool.capacity
    assert len(scheduler.prefixes) > 0
    again = order(scheduler.engine, [5] * 1500, new=2)
    run(scheduler, again)
    assert again[0].facts.cached_tokens > 0, "the latest is still there"
    gone = order(scheduler.engine, [0] * 1500, new=2)
    run(scheduler, gone)
    assert gone[0].facts.cached_tokens == 0, "the first went first"
    scheduler.close()
    assert scheduler.engine.pool.held == 0


def test_generate_serves_more_requests_than_places(tiny):
    engine = Engine(tiny, page=8, max_batch=2)
    answers = engine.generate([Request(prompt(3 + i, i), max_tokens=4) for i in range(7)])
    assert [a.tokens for a in answers] == [alone(tiny, prompt(3 + i, i), "dense", new=4) for i in range(7)]
