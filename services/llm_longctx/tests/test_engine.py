"""The engine, stepped by hand: batching changes nothing, waiting is fair, and what is cancelled is gone at once."""

import pytest
import torch

from services.llm_longctx.engine import Engine, GenerationRequest, Sampling
from services.llm_longctx.tests.hooks import Listeners


class Ear:
    """A callback that remembers."""

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
    facts = {"max_tokens": 8, "hooks": Listeners(*ears)} | facts
    return GenerationRequest(ids, [Sampling(**sampling)] * n, **facts), *ears


def finish(engine, *requests):
    for request in requests:
        engine.add_request(request)
    for _ in range(500):
        if not engine.in_flight:
            return
        engine.step()
    pytest.fail("the engine does not come to an end")


def most_running(scheduler):
    """Step until all have ended; how many ran at once."""
    most = 0
    while scheduler.in_flight:
        scheduler.step()
        most = max(most, len(scheduler.running))
    return most


@torch.no_grad()
def greedy(model, ids, n):
    ids = list(ids)
    for _ in range(n):
        ids.append(int(model(torch.tensor([ids]), keep=1)[0, -1].argmax()))
    return ids[-n:]


def test_greedy_decoding_with_a_cache_equals_recomputing_everything(engine, decoder):
    request, ear = ask([5, 17, 99], max_tokens=20)
    finish(engine, request)
    assert (ear.ids, ear.ends) == (greedy(decoder, [5, 17, 99], 20), [("length", 20)])


def test_end_tokens_end_an_answer_and_are_not_told(engine, decoder):
    known = greedy(decoder, [1, 2, 3], 6)
    first = known.index(known[3])
    request, ear = ask([1, 2, 3], stop_token_ids=frozenset({known[3]}), max_tokens=50)
    finish(engine, request)
    assert ear.ids == known[:first]
    assert ear.ends == [("stop", first + 1)], "the end token was produced, too"


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
    assert (ear.ends, ear.tokens) == ([("length", 0)], [])


def test_no_more_sequences_run_than_there_are_places(decoder):
    engine = Engine(decoder, max_batch=2).scheduler
    asked = [ask([i], max_tokens=6) for i in range(5)]
    for request, _ in asked:
        engine.add_request(request)
    assert most_running(engine) == 2
    assert [ear.ends for _, ear in asked] == [[("length", 6)]] * 5


def test_requests_wait_for_memory_but_one_alone_is_always_served(decoder):
    engine = Engine(decoder, kv_bytes=1).scheduler
    asked = [ask([i] * 150, max_tokens=4) for i in range(3)]
    for request, _ in asked:
        engine.add_request(request)
    assert most_running(engine) == 1
    assert all(ear.reason == "length" for _, ear in asked)
