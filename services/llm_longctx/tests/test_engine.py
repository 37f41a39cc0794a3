"""The engine, stepped by hand: batching changes nothing, waiting is fair, and what is cancelled is gone at once."""

import time

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from services.llm_longctx.engine import CandidateSpec, Engine, GenerationRequest, Sampling
from services.llm_longctx.tests.conftest import tiny_decoder
from shared.errors import Cancelled, DeadlineExceeded, Fault, FoveaError, NotReady, QueueFull
from shared.registry import CallContext
from tests.harness.hypothesis_profiles import fewer
from tests.harness.waiting import wait_until as until


class Ear:
    """A callback that remembers."""

    # ruff: noqa: D102  # what the calls are for, says the TokenCallback protocol
    def __init__(self, stop_at=None) -> None:
        self.tokens, self.prompted, self.ends, self.stop_at = [], [], [], stop_at

    def on_prompt(self, tokens):
        self.prompted += tokens

    def on_token(self, token):
        self.tokens.append(token)
        return token.id == self.stop_at

    def on_finish(self, reason, produced):
        self.ends.append((reason, produced))

    @property
    def ids(self):
        return [t.id for t in self.tokens]

    @property
    def reason(self):
        ((reason, _),) = self.ends
        return reason


def ask(ids, ear=None, n=1, **facts):
    ears = [ear or Ear()] if n == 1 else [Ear() for _ in range(n)]
    sampling = facts.pop("sampling", {})
    candidates = [CandidateSpec(Sampling(**sampling), e) for e in ears]
    return GenerationRequest(ids, candidates, **{"max_tokens": 8} | facts), *ears


def finish(engine, *requests):
    for request in requests:
        engine.add_request(request)
    for _ in range(500):
        if not engine.in_flight:
            return
        engine.step()
    pytest.fail("the engine does not come to an end")


@torch.no_grad()
def greedy(model, ids, n):
    ids = list(ids)
    for _ in range(n):
        ids.append(int(model(torch.tensor([ids]), keep=1)[0, -1].argmax()))
    return ids[-n:]


def test_greedy_decoding_with_a_cache_equals_recomputing_everything(engine, decoder):
    request, ear = ask([5, 17, 99], max_tokens=20)
    finish(engine, request)
    assert ear.ids == greedy(decoder, [5, 17, 99], 20)
    assert ear.ends == [("length", 20)]


@pytest.mark.parametrize("length", [1, 2, 7, 8, 9, 16, 33])
def test_prompts_of_any_length_are_read_in_chunks(decoder, length):
    engine, ids = Engine(decoder, prefill_tokens=8).scheduler, [(7 * i) % 250 for i in range(length)]
    request, ear = ask(ids, max_tokens=4)
    finish(engine, request)
    assert ear.ids == greedy(decoder, ids, 4)


@settings(max_examples=fewer(3))
@given(
    lengths=st.lists(st.tuples(st.integers(1, 40), st.integers(1, 9)), min_size=1, max_size=9),
    late=st.integers(0, 5),
    max_batch=st.integers(1, 4),
)
def test_an_answer_does_not_depend_on_its_neighbours(lengths, late, max_batch):
    model = tiny_decoder().double()
    sampling = {"temperature": 1.0, "seed": 11}
    asked = [
        ask([(3 * i + j) % 250 for j in range(n)], max_tokens=m, sampling=sampling, top_logprobs=2)
        for i, (n, m) in enumerate(lengths)
    ]
    engine = Engine(model, max_batch=max_batch, prefill_tokens=16).scheduler
    for request, _ in asked[: max(1, len(asked) - late)]:
        engine.add_request(request)
    for _ in range(3):
        engine.step()
    finish(engine, *(request for request, _ in asked[max(1, len(asked) - late) :]))
    for (request, ear), (n, m) in zip(asked, lengths, strict=True):
        alone, single = ask(request.prompt_ids, max_tokens=m, sampling=sampling, top_logprobs=2)
        finish(Engine(model).scheduler, alone)
        assert ear.ids == single.ids
        assert [t.logprob for t in ear.tokens] == pytest.approx([t.logprob for t in single.tokens], abs=1e-5)
        assert len(ear.ids) == m or n + m > 192


def test_end_tokens_end_an_answer_and_are_not_told(engine, decoder):
    known = greedy(decoder, [1, 2, 3], 6)
    first = known.index(known[3])
    request, ear = ask([1, 2, 3], stop_token_ids=frozenset({known[3]}), max_tokens=50)
    finish(engine, request)
    assert ear.ids == known[:first]
    assert ear.ends == [("stop", first + 1)], "the end token was produced, too"


def test_a_sink_ends_its_answer_and_no_other(engine, decoder):
    known = greedy(decoder, [1, 2, 3], 6)
    stopped, plain = ask([1, 2, 3], Ear(stop_at=known[1])), ask([1, 2, 3], max_tokens=6)
    finish(engine, stopped[0], plain[0])
    assert stopped[1].ids == known[: known.index(known[1]) + 1]
    assert stopped[1].reason == "stop"
    assert plain[1].ids == known


def test_answers_of_one_prompt_share_its_reading_and_go_their_own_ways(decoder, monkeypatch):
    engine, read = Engine(decoder).scheduler, []
    plain = engine.backend.prefill_chunk
    monkeypatch.setattr(engine.backend, "prefill_chunk", lambda *args: (read.append(1), plain(*args))[1])
    ears = [Ear() for _ in range(3)]
    candidates = [CandidateSpec(Sampling(temperature=1.5, seed=s), e) for s, e in zip((1, 2, 1), ears, strict=True)]
    finish(engine, GenerationRequest([4, 5, 6], candidates, max_tokens=12))
    assert len(read) == 1
    assert ears[0].ids == ears[2].ids != ears[1].ids
    assert all(ear.ends == [("length", 12)] for ear in ears)


def test_scoring_a_prompt_tells_every_token_but_the_first(decoder):
    ids = [(11 * i) % 250 for i in range(21)]
    request, ear = ask(ids, max_tokens=0, top_logprobs=3, score_prompt=True)
    finish(Engine(decoder, prefill_tokens=8).scheduler, request)
    logs = decoder(torch.tensor([ids]))[0].log_softmax(-1)
    assert [t.id for t in ear.prompted] == ids[1:]
    assert [t.logprob for t in ear.prompted] == pytest.approx(
        [float(logs[i, t]) for i, t in enumerate(ids[1:])], abs=1e-4
    )
    assert all(len(t.top) == 3 and t.top[0][1] >= t.logprob for t in ear.prompted)
    assert ear.ends == [("length", 0)]
    assert ear.tokens == []


def test_nothing_is_scored_that_was_not_asked_for(engine):
    request, ear = ask([1, 2, 3], max_tokens=3)
    finish(engine, request)
    assert ear.prompted == []
    assert all(t.logprob is None and t.top == () for t in ear.tokens)


def test_cancelling_ends_an_answer_within_one_step(engine):
    run = CallContext()
    request, ear = ask([1, 2, 3], max_tokens=100, run=run)
    other, other_ear = ask([1, 2, 3], max_tokens=9)
    engine.add_request(request)
    engine.add_request(other)
    for _ in range(4):
        engine.step()
    told = len(ear.tokens)
    run.cancel()
    finish(engine)
    assert isinstance(ear.reason, Cancelled)
    assert len(ear.tokens) == told
    assert other_ear.ends == [("length", 9)]


@pytest.mark.parametrize("steps", [0, 1, 3])
def test_a_dropped_request_is_forgotten_wherever_it_is(decoder, steps):
    engine = Engine(decoder, max_batch=1, prefill_tokens=4).scheduler
    first, _ = ask([1] * 12, max_tokens=5)
    waiting, ear = ask([1, 2], max_tokens=5)
    engine.add_request(first)
    engine.add_request(waiting)
    for _ in range(steps):
        engine.step()
    engine.abort(waiting)
    engine.abort(first)
    engine.step()
    assert engine.in_flight == 0
    assert isinstance(ear.reason, Cancelled)


def test_a_late_request_ends_with_its_deadline(engine):
    request, ear = ask([1, 2], max_tokens=100, run=CallContext(deadline=time.monotonic() - 1))
    finish(engine, request)
    assert isinstance(ear.reason, DeadlineExceeded)


def test_more_may_not_wait_than_the_queue_holds(decoder):
    engine = Engine(decoder, max_batch=1, max_waiting=2).scheduler
    requests = [ask([i], max_tokens=3) for i in range(3)]
    engine.add_request(requests[0][0])
    engine.add_request(requests[1][0])
    with pytest.raises(QueueFull, match="2 requests wait") as caught:
        engine.add_request(requests[2][0])
    assert caught.value.retry_after
    finish(engine)
    finish(engine, requests[2][0])
    assert [ear.reason for _, ear in requests] == ["length"] * 3


def test_no_more_sequences_run_than_there_are_places(decoder):
    engine = Engine(decoder, max_batch=2).scheduler
    asked = [ask([i], max_tokens=6) for i in range(5)]
    for request, _ in asked:
        engine.add_request(request)
    most = 0
    while engine.in_flight:
        engine.step()
        most = max(most, len(engine.running))
    assert most == 2
    assert [ear.ends for _, ear in asked] == [[("length", 6)]] * 5


def test_requests_wait_for_memory_but_one_alone_is_always_served(decoder):
    engine = Engine(decoder, kv_bytes=1).scheduler
    asked = [ask([i] * 150, max_tokens=4) for i in range(3)]
    for request, _ in asked:
        engine.add_request(request)
    most = 0
    while engine.in_flight:
        engine.step()
        most = max(most, len(engine.running))
    assert most == 1
    assert all(ear.reason == "length" for _, ear in asked)


def test_a_failing_step_is_our_fault_and_the_next_request_is_served(decoder):
    engine = Engine(decoder).scheduler
    engine.start()
    broken, ear = ask([10_000], max_tokens=3)
    engine.add_request(broken)
    until(lambda: ear.ends)
    assert isinstance(ear.reason, Fault)
    good, well = ask([1, 2], max_tokens=3)
    engine.add_request(good)
    until(lambda: well.ends)
    assert well.reason == "length"
    engine.close()
    with pytest.raises(NotReady):
        engine.add_request(good)


def test_an_answer_that_fails_fails_alone(decoder):
    class Broken(Ear):
        def on_token(self, token):
            raise RuntimeError

    engine = Engine(decoder).scheduler
    broken, ear = ask([1, 2], Broken(), max_tokens=5)
    good, well = ask([1, 2], max_tokens=5)
    finish(engine, broken, good)
    assert isinstance(ear.reason, Fault)
    assert well.ends == [("length", 5)]


def test_closing_ends_what_is_in_flight(decoder):
    engine = Engine(decoder).scheduler
    request, ear = ask([1], max_tokens=50)
    engine.add_request(request)
    engine.step()
    engine.close()
    assert isinstance(ear.reason, FoveaError)
    assert engine.in_flight == 0


def test_a_long_prompt_delays_running_answers_by_one_chunk_a_step(decoder):
    engine = Engine(decoder, prefill_tokens=4).scheduler
    running, ear = ask([1, 2], max_tokens=30)
    engine.add_request(running)
    engine.step()
    long, _ = ask([3] * 40, max_tokens=1)
    engine.add_request(long)
    for step in range(1, 11):
        before = len(ear.tokens)
        engine.step()
        assert len(ear.tokens) == before + 1, f"step {step} starved the running answer"
