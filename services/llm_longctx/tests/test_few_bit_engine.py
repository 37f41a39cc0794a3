"""Decoding with older keys and values in few bits: every method, both back ends, sharing, budgets and bytes."""

from functools import cache

import pytest
import torch

from fovea.errors import InvalidOption
from services.llm_longctx.engine import Engine
from services.llm_longctx.engine.offline.completion import Request
from services.llm_longctx.engine.offline.open_sequence import OpenSequence
from services.llm_longctx.engine.quality.fidelity_monitor import FidelityMonitor
from services.llm_longctx.kernels.packed_pages import CACHE_FORMATS, R3, R4
from services.llm_longctx.methods import method, methods
from services.llm_longctx.serving.method_selection import fit_policy
from services.llm_longctx.tests.hooks import serve
from services.llm_longctx.tests.method_contract.oracle import trials
from services.llm_longctx.tests.tiny_models import random_decoder
from shared.lm.builders import llama

IDS = [(7 * i + i * i) % 61 for i in range(1400)]
ROLES = {"schema": "head-plan/1", "roles": [[1, 0], [0, 1]], "heads": [[1, 1]]}


@pytest.fixture(scope="module")
def net():
    sizes = {"vocab": 61, "width": 32, "layers": 2, "heads": 4, "kv_heads": 2, "hidden": 56, "positions": 1500}
    return random_decoder(lambda: llama(**sizes, head_dim=16), 0.2)


@cache
def decode(net, name, bits, backend="auto", prompt=150, steps=24):
    engine = Engine(net, trials(methods()[name])[0], ROLES, page=16, backend=backend, cache_bits=bits)
    s = engine.open()
    s.prefill(IDS[:prompt])
    logits = torch.stack([s.step(IDS[prompt + i]).float() for i in range(steps)])
    held, foreseen = s.kv_bytes(), engine.estimate(prompt=prompt, new=steps)
    s.close()
    assert engine.kv_bytes() == engine.pool.budget.held == 0
    return logits, held, foreseen


@pytest.mark.parametrize("bits", CACHE_FORMATS)
@pytest.mark.parametrize("name", sorted(methods()))
def test_every_method_stays_near_itself_in_few_bits(net, name, bits):
    whole, _, _ = decode(net, name, 16)
    few, held, foreseen = decode(net, name, bits)
    p, q = whole.log_softmax(-1), few.log_softmax(-1)
    divergence = (p.exp() * (p - q)).sum(-1).mean()
    assert divergence <= {8: 2e-3, 4: 0.08, R4: 0.08, R3: 0.2}[bits]
    assert not torch.equal(whole, few) or held < 40_000
    assert held <= foreseen


@pytest.mark.parametrize(("bits", "most"), [(4, 0.30), (8, 0.56), (R4, 0.28), (R3, 0.22)])
def test_bytes_of_a_long_prompt(net, bits, most):
    """In the served model's proportions: heads of 64 channels in bfloat16."""
    wide = llama(vocab=61, width=64, layers=2, heads=4, kv_heads=2, head_dim=64, hidden=56, positions=8200)
    engine = Engine(wide.bfloat16().eval(), page=16, cache_bits=bits)
    assert engine.estimate(prompt=8192) <= most * engine.dense_bytes(8192)
    half = engine.policy_of("duo", {"schema": "head-plan/1", "roles": [[1, 0], [0, 1]]})
    if bits == 4:
        assert half.nbytes(8192, 0, engine.pool) <= 0.165 * engine.dense_bytes(8192)
    s = engine.open()
    s.prefill([i % 61 for i in range(1500)], [512, 512, 476])
    assert s.kv_bytes() <= engine.estimate(prompt=1500)
    assert s.kv_bytes() <= (most + 0.03) * engine.dense_bytes(1500)
    s.close()


def test_a_budget_in_bytes_holds_more_in_few_bits(net):
    engine = Engine(net, page=16)
    budget = engine.dense_bytes(600) // 3
    kept = {
        bits: fit_policy(engine, method("snapkv"), None, budget, 600, 0, bits).footprint(600, 0)[0].sum()
        for bits in (16, 8, 4)
    }
    assert kept[16] < kept[8] < kept[4]
    for bits in (8, 4):
        policy = fit_policy(engine, method("snapkv"), None, budget, 600, 0, bits)
        one = OpenSequence(engine.runner, engine.runner.open(policy))
        one.prefill(IDS[:600])
        assert one.kv_bytes() <= budget
        one.close()


def test_pages_of_another_size_are_refused(net):
    with pytest.raises(InvalidOption, match="needs pages of 16 entries"):
        Engine(net, page=8, cache_bits=4)
    with pytest.raises(InvalidOption, match="needs pages of 16 entries"):
        Engine(net, page=8).policy_of("dense", cache_bits=8)


@pytest.mark.parametrize(("how", "bits"), [("dense", 4), ("duo", 4), ("snapkv", 4), ("duo", R4), ("snapkv", R3)])
def test_a_cached_prefix_gives_the_same_answer(net, how, bits):
    how = trials(methods()[how])[0]
    request = Request(IDS[:1200], how, ROLES, max_tokens=30)
    alone = serve(Engine(net, page=16, cache_bits=bits), request)
    engine = Engine(net, page=16, cache_bits=bits)
    serve(engine, Request([*IDS[:1100], 5, 6], how, ROLES, max_tokens=3))
    again = serve(engine, request)
    assert (alone.usage.cached_tokens, again.usage.cached_tokens, again.tokens) == (0, 1024, alone.tokens)
    whole = serve(engine, Request(IDS[:1200], how, ROLES, max_tokens=3, cache_bits=16))
    assert whole.usage.cached_tokens == 0, "whole entries are not taken from packed ones"
    engine.scheduler.close()
    assert engine.pool.budget.held == 0


def generate(engine, *requests):
    done = engine.generate(list(requests))
    return [one.tokens for one in done], [one.usage for one in done]


def test_requests_of_all_types_go_together_and_are_preempted(net):
    alone = {}
    for bits in (16, 8, 4, R3):
        (alone[bits],), _ = generate(Engine(net, page=16), Request(IDS[:700], max_tokens=200, cache_bits=bits))
    engine = Engine(net, page=16, kv_bytes=1)
    several = [Request(IDS[:700], max_tokens=200, cache_bits=bits) for bits in (16, 8, 4, 4, 16, 16, R3)]
    tokens, usages = generate(engine, *several)
    assert [alone[one.cache_bits] for one in several] == tokens
    assert sum(usage.preempted for usage in usages) > 0
    assert usages[2].kv_bytes < usages[1].kv_bytes < usages[0].kv_bytes
    engine.scheduler.backend.reclaim()
    assert engine.pool.budget.held == 0


def test_dense_in_few_bits_is_watched(net):
    engine = Engine(net, page=16, cache_bits=4, monitor=FidelityMonitor(share=1.0, floor=0.0, seed=0))
    for bits, compared in ((16, 0), (4, 1)):
        engine.add_request(Request(IDS[:200], max_tokens=8, cache_bits=bits))
        while engine.scheduler.in_flight or engine.scheduler.backend.background_tasks:
            engine.scheduler.step()
        assert len(engine.monitor) == compared
    assert engine.policy.variant != engine.dense.variant
