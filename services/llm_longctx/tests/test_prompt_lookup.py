"""Drafts from the prompt: what they propose, that they change no answer, and that they stop where they don't pay."""

import pytest
import torch

from services.llm_longctx.engine import Engine, Request
from services.llm_longctx.engine.drafting import drafter
from services.llm_longctx.engine.drafting.prompt_lookup import DraftMeter, PromptLookup
from services.llm_longctx.kernels import backends
from services.llm_longctx.methods import method
from services.llm_longctx.tests.conftest import tiny_decoder

native = pytest.mark.skipif("cpu_ext" not in backends(), reason="the C++ kernels are not built")
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
    plan = {"schema": "head-plan/1", "roles": [[1, 0], [0, 1]], "heads": [[0, 1]]}
    engine = Engine(tiny_decoder().to(dtype), page=4 if bits == 16 else 16, cache_bits=bits)
    runs, plan = watch(engine, monkeypatch), plan if how != "dense" else None
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
