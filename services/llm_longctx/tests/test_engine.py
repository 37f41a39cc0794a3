"""The engine, stepped by hand: decoding with a cache equals recomputing, and end tokens end an answer."""

import pytest
import torch

from services.llm_longctx.engine import CandidateSpec, GenerationRequest, Sampling


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
