"""The engine by hand: bytes by formula, refusals, and steps that do not fit."""

import pytest
import torch

from fovea.errors import BadInput, InvalidOption
from services.llm_longctx.engine import Engine, Request
from services.llm_longctx.kv_cache import PoolExhausted
from services.llm_longctx.methods import method
from services.llm_longctx.methods.core.hook_results import CacheUpdate, RetentionPolicy

DUO, RAZOR = method("duo", sink=2, recent=5), method("razor", sink=2, window_min=6, window_div=8)
RECYCLED, POWER = method("recycled", budget=4, stride=3), method("power", block=4, window=2)
ACT = method("act", beta=0.3, threshold=0.02)
TINY_PLAN = {"schema": "head-plan/1", "roles": [[1, 0], [0, 1]], "heads": [[0, 1], [1, 2]]}


def prompt(n, seed=0):
    return [(7 * i + 13 * seed + i * i) % 250 for i in range(n)]


def engine_of(model, how, **more):
    return Engine(model, how, TINY_PLAN, **{"page": 8} | more)


def test_usage_tells_bytes_density_and_full_steps(tiny):
    engine = engine_of(tiny, "dense")
    ask = lambda how, n=40, new=9: Request(prompt(n), how, TINY_PLAN, max_tokens=new)  # noqa: E731
    dense, streaming, striding, copying = (
        one.usage for one in engine.generate([ask(h) for h in (method("dense"), DUO, POWER, RECYCLED)])
    )
    assert dense.kv_bytes == dense.kv_bytes_dense == engine.dense_bytes(48)
    assert dense.kv_ratio == dense.prefill_density == 1
    assert streaming.kv_ratio < 0.7
    assert 0.3 < striding.prefill_density < 0.9
    assert copying.full_steps == 8 // 3
    assert copying.kv_bytes > dense.kv_bytes


@pytest.mark.parametrize(
    ("call", "error", "word"),
    [
        (lambda m: Engine(m, "denser"), InvalidOption, "denser"),
        (lambda m: Engine(m, page=0), InvalidOption, "page"),
        (lambda m: Engine(m, plan={"schema": "head-plan/1", "roles": [[1]]}), BadInput, "roles is 1x1"),
        (lambda m: Engine(m).step(1), InvalidOption, "Nothing was read"),
        (lambda m: Engine(m).entries(0, 0), InvalidOption, "Nothing was read"),
        (lambda m: Engine(m).prefill([1, 2], [1]), InvalidOption, "don't make a prompt"),
        (lambda m: Engine(m).generate([Request([])]), InvalidOption, "prompt needs tokens"),
        (lambda m: Engine(m).generate([Request([1, 999])]), InvalidOption, "below 272"),
        (lambda m: Engine(m, backend="abacus"), BadInput, "abacus"),
    ],
)
def test_what_can_not_be_is_refused_with_a_reason(tiny, call, error, word):
    with pytest.raises(error, match=word):
        call(tiny)


def test_a_prompt_may_be_empty_or_one_token(tiny):
    engine = engine_of(tiny, "dense")
    assert engine.prefill([]).shape == (0, 272)
    after_nothing = engine.step(5)
    assert torch.allclose(engine.prefill([5])[0], after_nothing, atol=1e-10)


def test_a_head_that_was_declared_full_is_never_cut(tiny):
    class Liar(type(DUO)):
        """Cuts what it said is full."""

        name = "liar"

        def after_prefill(self, view):
            return CacheUpdate({0: RetentionPolicy.ends(view.heads[0].positions, 1, 1, slide=True)})

    with pytest.raises(ValueError, match="said is full"):
        engine_of(tiny, Liar()).prefill(prompt(9))


def test_a_step_that_does_not_fit_changes_nothing(tiny):
    engine = Engine(tiny, page=8, kv_bytes=1)
    sequences = [engine.open() for _ in range(2)]
    for s in sequences:
        s.prefill(prompt(96))
    while sum(s.state.cache.pages_needed() for s in sequences) <= engine.pool.free:
        engine.batch(dict.fromkeys(sequences, 7))
    before = [s.state.cache.length for s in sequences]
    with pytest.raises(PoolExhausted, match="are free"):
        engine.batch(dict.fromkeys(sequences, 7))
    assert [s.state.cache.length for s in sequences] == before
    sequences[0].close()
    engine.batch({sequences[1]: 3})


def test_the_reference_back_end_serves_the_same(tiny):
    fast, slow = engine_of(tiny, POWER), engine_of(tiny, POWER, backend="reference")
    assert torch.allclose(fast.prefill(prompt(20)), slow.prefill(prompt(20)), atol=1e-9)
    assert torch.allclose(fast.step(4), slow.step(4), atol=1e-9)


def test_a_budget_of_bytes_is_met_by_heads_and_not_by_rounding(tiny):
    engine = Engine(
        tiny,
        method("duo", sink=16, recent=128, share=0.0),
        TINY_PLAN | {"scores": {"duo_gate": [[0.9, 0.1], [0.2, 0.8]]}},
    )
    s = engine.open()
    s.prefill([i % 30 for i in range(190)])
    kept = sum(len(s.entries(layer, g).positions) for layer in range(2) for g in range(2)) * engine.pool.entry_bytes
    assert kept == 4 * 144 * engine.pool.entry_bytes
    assert s.kv_bytes() <= 1.12 * kept, "of pages of 64 entries it would be 1.33"
    s.close()
