"""The engine by hand: published logits by every kind of hook, bytes by formula, and neighbours that change nothing."""

import dataclasses
import json
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from services.llm_longctx.engine import Engine, Request
from services.llm_longctx.kv_cache import PoolExhausted
from services.llm_longctx.methods import method
from services.llm_longctx.methods.core.hook_results import CacheUpdate, RetentionPolicy
from services.llm_longctx.tests.conftest import tiny_decoder
from services.llm_longctx.tests.toy_methods import Averaging, Copying, Halving, Listing, Streaming, Striding
from shared.errors import BadInput, InvalidOption
from shared.lm.builders import llama
from tests.harness.hypothesis_profiles import fewer

GOLDEN = np.load(Path(__file__).parent / "golden" / "engine_tinyllama.npz")
IDS = GOLDEN["ids"].tolist()
PLAN = {"schema": "head-plan/1", "roles": [[1, 0], [0, 1], [0, 0]]}
TINY_PLAN = {"schema": "head-plan/1", "roles": [[1, 0], [0, 1]], "heads": [[0, 1], [1, 2]]}
EVERY = [
    method("dense"),
    Streaming(),
    Streaming(exact=True),
    Averaging(),
    Averaging(slide=True),
    Copying(),
    Striding(),
    Listing(),
    Halving(),
]


def uniform(seed, n):
    """Numbers in [-1, 1) by splitmix64, as the golden's README says."""
    z = (np.uint64(seed) << np.uint64(32)) + np.arange(n, dtype=np.uint64)
    with np.errstate(over="ignore"):
        z += np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z ^= z >> np.uint64(31)
    return (z >> np.uint64(40)).astype(np.float64) / 2**23 - 1


@pytest.fixture(scope="module")
def golden_llama():
    model = llama(
        vocab=96, width=64, layers=3, heads=4, kv_heads=2, hidden=128, positions=4096, norm_eps=1e-5, head_dim=16
    ).double()
    weights = {}
    for key, old in model.state_dict().items():
        x = uniform((zlib.crc32(key.encode()) + 101) % 2**32, old.numel()).reshape(old.shape)
        if "norm" in key:
            x = 1 + 0.1 * x
        elif "embed" not in key:
            x = x * np.sqrt(3 / old.shape[1]) * (2.5 if "q_proj" in key or "k_proj" in key else 1)
        weights[key] = torch.from_numpy(x)
    model.load_state_dict(weights)
    return model.eval().requires_grad_(requires_grad=False)


@pytest.fixture(scope="module")
def tiny():
    return tiny_decoder().double()


def prompt(n, seed=0):
    return [(7 * i + 13 * seed + i * i) % 250 for i in range(n)]


def engine_of(model, how, **more):
    plan = TINY_PLAN if model.config.layers == 2 else PLAN
    return Engine(model, how, plan, **{"page": 8} | more)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(
    ("how", "chunks", "decoded", "tail"),
    [
        (method("dense"), None, "dense_decode", "dense_prefill_tail"),
        (method("dense"), [48, 48, 64], "dense_decode", "dense_prefill_tail"),
        (Streaming(sink=8, recent=24), None, "duo_single_decode", "dense_prefill_tail"),
        (Streaming(sink=8, recent=24), [48, 48, 64], "duo_chunk48_decode", "duo_chunk48_prefill_tail"),
        (Averaging(sink=4, window=32), None, "razor_decode", "dense_prefill_tail"),
        (Averaging(sink=4, window=32), [100, 60], "razor_decode", "dense_prefill_tail"),
        (Copying(budget=24, stride=4), None, "recycled_decode", "dense_prefill_tail"),
    ],
)
def test_logits_are_the_published_ones(golden_llama, dtype, how, chunks, decoded, tail):
    engine = Engine(golden_llama.to(dtype), how, PLAN, page=16)
    try:
        read = engine.prefill(IDS[:160], chunks)
        steps = torch.stack([engine.step(token) for token in IDS[160:]])
    finally:
        golden_llama.double()
    assert np.abs(read[-8:].double().numpy() - GOLDEN[tail]).max() < 2e-4
    assert np.abs(steps.double().numpy() - GOLDEN[decoded]).max() < 2e-4


@pytest.mark.parametrize("split", [[24], [1] * 24, [7, 17], [23, 1], [8, 8, 8]])
@pytest.mark.parametrize("how", [method("dense"), Striding(), Averaging(), Copying(), Halving()], ids=lambda m: m.name)
def test_chunks_change_nothing_where_a_method_says_so(tiny, how, split):
    whole, cut = engine_of(tiny, how), engine_of(tiny, how)
    assert torch.allclose(whole.prefill(prompt(24)), cut.prefill(prompt(24), split), atol=1e-10)
    assert torch.allclose(whole.step(3), cut.step(3), atol=1e-10)


def test_reading_and_stepping_are_the_same_for_a_rule_of_positions(tiny):
    """A rule that knows positions only reads a token alike whether it is the prompt's or the answer's."""
    for how in (method("dense"), Striding(), Streaming(exact=True)):
        read, stepped = engine_of(tiny, how), engine_of(tiny, how)
        wanted = read.prefill(prompt(30))
        stepped.prefill(prompt(9))
        got = torch.stack([stepped.step(token) for token in prompt(30)[9:]])
        assert torch.allclose(wanted[9:], got, atol=1e-10), how.name


def test_dense_is_the_decoder_itself(tiny):
    engine = engine_of(tiny, "dense")
    with torch.no_grad():
        wanted = tiny(torch.tensor([prompt(40)]))[0]
    assert torch.allclose(engine.prefill(prompt(33), [10, 23]), wanted[:33], atol=1e-10)
    assert torch.allclose(torch.stack([engine.step(t) for t in prompt(40)[33:]]), wanted[33:], atol=1e-10)


def test_entries_tell_what_a_head_holds(tiny):
    engine = engine_of(tiny, Streaming(sink=2, recent=5))
    engine.prefill(prompt(20))
    for token in (1, 2, 3):
        engine.step(token)
    full, cut = engine.entries(0, 0), engine.entries(0, 1)
    assert full.positions.tolist() == list(range(23))
    assert sorted(cut.positions.tolist()) == [0, 1, 18, 19, 20, 21, 22]
    assert full.k.shape == (23, 8)
    assert full.log_weight is None
    averaging = engine_of(tiny, Averaging(sink=2, window=6))
    averaging.prefill(prompt(20))
    averaging.step(1)
    held = averaging.entries(0, 1)
    assert sorted(held.positions.tolist()) == [-1, 0, 1, *range(14, 21)]
    assert float(held.log_weight[held.positions < 0]) == pytest.approx(np.log(12))
    assert float(held.log_weight.sum()) == pytest.approx(np.log(12))


@pytest.mark.parametrize("how", EVERY, ids=lambda m: m.name)
@settings(max_examples=fewer(5))
@given(n=st.integers(1, 40), new=st.integers(0, 12))
def test_bytes_held_are_foreseen_to_a_page_per_head(tiny, how, n, new):
    engine = engine_of(tiny, how)
    engine.prefill(prompt(n))
    for token in range(new):
        engine.step(token)
    heads = tiny.config.layers * tiny.config.kv_heads
    slack = heads * engine.pool.page_bytes * (2 if isinstance(how, Copying) else 1)
    assert engine.kv_bytes() <= engine.estimate(prompt=n, new=new) <= engine.kv_bytes() + slack
    if isinstance(how, Streaming):
        kept = sum(n + new if full else min(n + new, 7) for row in TINY_PLAN["roles"] for full in row)
        assert kept * engine.pool.entry_bytes <= engine.kv_bytes() <= kept * engine.pool.entry_bytes + slack
    engine.open().close()
    engine._default.close()
    assert engine.kv_bytes() == engine.pool.held == 0


def test_compression_returns_pages_at_once(tiny):
    engine = engine_of(tiny, Streaming(sink=2, recent=5))
    engine.prefill(prompt(150))
    dense = engine.dense_bytes(150)
    assert engine.kv_bytes() < 0.6 * dense
    assert engine.pool.held * engine.pool.page_bytes == engine.kv_bytes()


# Batches.


@settings(max_examples=fewer(5))
@given(lengths=st.lists(st.integers(1, 30), min_size=len(EVERY), max_size=len(EVERY)), seed=st.integers(0, 99))
def test_methods_mix_in_one_batch_and_neighbours_change_nothing(tiny, lengths, seed):
    rng = np.random.default_rng(seed)
    engine, alone = engine_of(tiny, "dense"), [engine_of(tiny, how) for how in EVERY]
    joins, leaves = rng.integers(0, 4, len(EVERY)), rng.integers(4, 9, len(EVERY))
    live = {}
    for step in range(9):
        for i, how in enumerate(EVERY):
            if joins[i] == step:
                s = engine.open(how, TINY_PLAN)
                assert torch.allclose(
                    s.prefill(prompt(lengths[i], i)), alone[i].prefill(prompt(lengths[i], i)), atol=1e-10
                )
                live[i] = s
        for i in [i for i in live if leaves[i] == step]:
            live.pop(i).close()
        token = int(rng.integers(0, 250))
        for s, logits in engine.batch({s: token + i for i, s in live.items()}).items():
            i = next(i for i in live if live[i] is s)
            assert torch.allclose(logits, alone[i].step(token + i), atol=1e-10), EVERY[i].name
    for s in live.values():
        s.close()
    assert engine.pool.held == 0


def test_generated_answers_are_those_of_single_runs(tiny):
    engine = engine_of(tiny, "dense", max_batch=3)
    requests = [
        Request(prompt(5 + 9 * i, i), how, TINY_PLAN, max_tokens=12 - i % 3, temperature=i % 2, seed=i)
        for i, how in enumerate(EVERY)
    ]
    together = engine.generate(requests)
    assert engine.pool.held == 0
    for request, answer in zip(requests, together, strict=True):
        (single,) = engine_of(tiny, "dense").generate([request])
        assert answer.tokens == single.tokens
        assert answer.reason == "length"
        assert answer.usage.prompt_tokens == len(request.ids)
        assert answer.usage.completion_tokens == len(answer.tokens) == request.max_tokens
        assert answer.usage.method == request.method.name
        assert json.dumps(dataclasses.asdict(answer.usage))


def test_usage_tells_bytes_density_and_full_steps(tiny):
    engine = engine_of(tiny, "dense")
    ask = lambda how, n=40, new=9: Request(prompt(n), how, TINY_PLAN, max_tokens=new)  # noqa: E731
    dense, streaming, striding, copying = (
        one.usage for one in engine.generate([ask(h) for h in (method("dense"), Streaming(), Striding(), Copying())])
    )
    assert dense.kv_bytes == dense.kv_bytes_dense == engine.dense_bytes(48)
    assert dense.kv_ratio == dense.prefill_density == 1
    assert streaming.kv_ratio < 0.7
    assert 0.3 < striding.prefill_density < 0.9
    assert copying.full_steps == 8 // 3
    assert copying.kv_bytes > dense.kv_bytes


# What is refused.


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
    class Liar(Streaming):
        """Cuts what it said is full."""

        name = "liar"

        def after_prefill(self, view):
            """All heads."""
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


def test_memos_reach_the_next_hook_and_epilogues_see_the_true_lse(tiny):
    engine = engine_of(tiny, Halving())
    s = engine.open()
    s.prefill(prompt(9))
    s.step(1)
    s.step(2)
    assert s.state.memos == [3, 3]
    assert not torch.allclose(s.step(1), engine_of(tiny, "dense").prefill([*prompt(9), 1, 2, 1])[-1], atol=1e-3)


def test_the_reference_back_end_serves_the_same(tiny):
    fast, slow = engine_of(tiny, Striding()), engine_of(tiny, Striding(), backend="reference")
    assert torch.allclose(fast.prefill(prompt(20)), slow.prefill(prompt(20)), atol=1e-9)
    assert torch.allclose(fast.step(4), slow.step(4), atol=1e-9)


def test_a_fork_shares_the_prompt_and_goes_its_own_way(tiny):
    for how in EVERY:
        engine = engine_of(tiny, how)
        s = engine.open()
        s.prefill(prompt(30))
        alone = s.kv_bytes()
        twin = s.fork()
        if how.name == "dense":
            assert engine.kv_bytes() <= alone + 4 * engine.pool.page_bytes
        first, second = s.step(3), twin.step(3)
        assert torch.allclose(first, second, atol=1e-10), how.name
        s.step(9)
        s.close()
        again = engine.open()
        again.prefill(prompt(30))
        again.step(3)
        assert torch.allclose(twin.step(8), again.step(8), atol=1e-10), how.name


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
