"""Drawing tokens: what each knob keeps, that draws belong to one answer; and drafts, which change no answer."""

from collections import Counter

import pytest
import torch

from services.llm_longctx.engine import Engine, Request, Sampling
from services.llm_longctx.engine.drafting import drafter
from services.llm_longctx.engine.drafting.prompt_lookup import DraftMeter, PromptLookup
from services.llm_longctx.engine.requests.prompt_scores import token_logprobs
from services.llm_longctx.engine.sampler import Sampler
from services.llm_longctx.methods import method
from services.llm_longctx.tests.conftest import native, tiny_decoder

LOGITS = torch.tensor([0.0, 3.0, 2.0, 1.0, -2.0])


def draws(sampling, n=300, logits=LOGITS, prompt=()):
    seeded = (Sampling(**{"temperature": 1.0, "seed": i} | sampling) for i in range(n))
    return Counter(Sampler(one, prompt, len(logits)).draw(logits).id for one in seeded)


def test_draws_follow_the_softmax_and_temperature_zero_takes_the_likeliest():
    assert (draws({"temperature": 0.0}), draws({"temperature": 1e-9})) == ({1: 300}, {1: 300})
    found, known = draws({}, 3000), LOGITS.softmax(-1)
    for token, probability in enumerate(known.tolist()):
        assert found[token] / 3000 == pytest.approx(probability, abs=0.03)


@pytest.mark.parametrize(("knob", "kept"), [
    ({"top_k": 2}, {1, 2}), ({"top_k": 99}, {0, 1, 2, 3, 4}), ({"top_p": 0.0}, {1}), ({"top_p": 0.6}, {1}),
    ({"top_p": 0.8}, {1, 2}), ({"min_p": 0.3}, {1, 2}), ({"min_p": 1.0}, {1}),
    ({"top_k": 3, "top_p": 0.99, "min_p": 0.1, "temperature": 2.0}, {1, 2, 3}),
])  # fmt: skip
def test_knobs_keep_the_likeliest_tokens(knob, kept):
    assert set(draws({"temperature": 3.0} | knob if knob.keys() <= {"top_k"} else knob, 400)) == kept


def test_penalties_move_away_from_what_was_produced():
    for penalty in ({"presence_penalty": 1.5}, {"frequency_penalty": 1.5}, {"repetition_penalty": 2.0}):
        sampler = Sampler(Sampling(**penalty), [], 5)
        assert [sampler.draw(LOGITS).id for _ in range(2)] == [1, 2]
    assert Sampler(Sampling(presence_penalty=0.9), [1], 5).draw(LOGITS).id == 1, "the prompt does not count here"
    assert Sampler(Sampling(repetition_penalty=2.0), [1], 5).draw(LOGITS).id == 2, "but it does here"
    often, once = Sampler(Sampling(frequency_penalty=0.6), [], 5), Sampler(Sampling(presence_penalty=0.6), [], 5)
    assert [often.draw(LOGITS).id for _ in range(4)] == [1, 1, 2, 1]
    assert [once.draw(LOGITS).id for _ in range(4)] == [1, 1, 1, 1]


def test_log_probabilities_are_the_models_own_before_bias_and_temperature():
    token = Sampler(Sampling(temperature=0.5, seed=0, logit_bias={4: 100.0}), [], 5).draw(LOGITS, top=2)
    logs = LOGITS.log_softmax(-1)
    assert (token.id, token.logprob, [i for i, _ in token.top]) == (4, pytest.approx(float(logs[4])), [1, 2])
    assert [lp for _, lp in token.top] == pytest.approx(logs[[1, 2]].tolist())
    assert Sampler(Sampling(), [], 5).draw(LOGITS).logprob is None


def test_scores_name_as_many_alternatives_as_there_are():
    (one, two) = token_logprobs(torch.stack([LOGITS, -LOGITS]), [0, 4], 9)
    assert [len(one.top), len(two.top)] == [5, 5]
    assert sum(2.718281828**lp for _, lp in one.top) == pytest.approx(1, abs=1e-5)
    assert token_logprobs(LOGITS[None], [2], 0)[0].top == ()


@pytest.mark.parametrize("penalty", [0.1, 10.0])
@pytest.mark.parametrize("temperature", [1e-4, 2.0])
def test_the_widest_knobs_leave_something_to_draw(penalty, temperature):
    penalties = {"repetition_penalty": penalty, "presence_penalty": -2.0, "frequency_penalty": 2.0}
    widest = Sampling(temperature, seed=0, min_p=1.0, top_p=0.0, logit_bias={0: -100.0, 3: 100.0}, **penalties)
    sampler = Sampler(widest, [0, 1], 5)
    assert {sampler.draw(LOGITS * 30).id for _ in range(20)} <= set(range(5))


PROMPT = [7, 8, 9, 10, 11, 12] * 8


def test_what_followed_the_same_tokens_is_drafted():
    lookup = PromptLookup()
    assert lookup.draft([1, 2, 3, 4, 5, 1, 2, 3], 4) == [4, 5, 1, 2]
    assert lookup.draft([1, 2, 3, 4, 5, 1, 2, 3, 9], 4) == []
    assert lookup.draft([1, 2, 3, 4, 5, 1, 2, 3, 9, 8, 1, 2, 3], 2) == [9, 8], "the last occurrence counts"
    assert (lookup.draft([1, 2, 3, 4, 5, 1, 2, 3, 9, 8, 1, 2, 3], 0), PromptLookup().draft([1, 2], 4)) == ([], [])


def test_a_meter_stops_what_does_not_pay_and_looks_again():
    meter = DraftMeter()
    assert not meter.pays(), "first it must know what a plain step costs"
    meter.add_plain(1.0)
    assert meter.pays()
    meter.add_drafted(1.5, 1)

    def drafts(steps: int) -> int:
        drafted = 0
        for _ in range(steps):
            drafted += meter.pays()
            meter.add_plain(1.0)
        return drafted

    assert drafts(60) == 0
    assert drafts(5) > 0, "the text may have changed"
    for _ in range(20):
        meter.add_plain(1.0)
        meter.add_drafted(1.5, 3)
    assert meter.pays()


def watch(engine, monkeypatch) -> list[int]:
    runs, real = [], engine.runner.decode
    monkeypatch.setattr(
        engine.runner, "decode", lambda states, tokens, *more: runs.append(len(tokens)) or real(states, tokens, *more)
    )
    return runs


def answer(monkeypatch, most: int, how="dense", temperature=0.0, dtype=torch.float32, bits=16):
    """Tokens of one request, and how often the decoder ran, with drafts of at most so many tokens."""
    monkeypatch.setattr(drafter, "_DRAFT", most)
    monkeypatch.setattr(DraftMeter, "pays", lambda _meter: True)
    plan = {"schema": "head-plan/1", "roles": [[1, 0], [0, 1]], "heads": [[0, 1]]} if how != "dense" else None
    engine = Engine(tiny_decoder().to(dtype), page=4 if bits == 16 else 16, cache_bits=bits)
    runs = watch(engine, monkeypatch)
    (done,) = engine.generate([Request(PROMPT, how, plan, max_tokens=60, temperature=temperature, seed=5)])
    engine.scheduler.backend.reclaim()
    assert engine.pool.held == 0
    return done.tokens, runs, done.usage


@native
@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize(("dtype", "bits"), [(torch.float32, 16), (torch.bfloat16, 16), (torch.float32, 4)])
def test_an_answer_is_the_same_with_drafts(monkeypatch, temperature, dtype, bits):
    tokens, runs, usage = answer(monkeypatch, 4, temperature=temperature, dtype=dtype, bits=bits)
    plain, single, plain_usage = answer(monkeypatch, 0, temperature=temperature, dtype=dtype, bits=bits)
    assert (tokens, set(single)) == (plain, {1})
    assert temperature or max(runs) > 1, "drafts were made"
    assert usage.kv_bytes == plain_usage.kv_bytes
    assert len(runs) <= len(single)


@native
@pytest.mark.parametrize(
    "how", [method("duo", sink=2, recent=6), method("recycled", budget=8, stride=2), method("act")]
)
def test_where_entries_leave_or_methods_look_on_nothing_is_drafted(monkeypatch, how):
    _, runs, _ = answer(monkeypatch, 4, how)
    assert set(runs) == {1}


@native
def test_what_comes_true_is_not_computed_again(monkeypatch):
    """A model that repeats its prompt for ever: five tokens come from each run."""
    net = tiny_decoder()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.zero_()
        net.lm_head.weight[7] = 1  # whatever was read, 7 follows
        net.model.norm.weight.fill_(1)
        net.model.embed_tokens.weight.fill_(1)
    monkeypatch.setattr(DraftMeter, "pays", lambda _meter: True)
    engine = Engine(net, page=4)
    runs = watch(engine, monkeypatch)
    (done,) = engine.generate([Request([7] * 20, max_tokens=41)])
    assert done.tokens == [7] * 41
    assert len(runs) <= 10
