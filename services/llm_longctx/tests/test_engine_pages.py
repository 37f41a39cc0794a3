"""The engine by hand: bytes by formula, its room, refusals, steps that do not fit, and layers whose windows slide."""

import weakref

import pytest
import torch

from fovea.errors import BadInput, InvalidOption
from services.llm_longctx.engine import Engine, GenerationRequest, Request, Sampling
from services.llm_longctx.kv_cache import PoolExhausted
from services.llm_longctx.methods import method
from services.llm_longctx.methods.core.hook_results import CacheUpdate, RetentionPolicy
from services.llm_longctx.serving.decoder_model import choose_room
from services.llm_longctx.serving.method_selection import fit_policy
from services.llm_longctx.tests.hooks import drain, serve
from services.llm_longctx.tests.test_decode_step import IDS, ROLES, build
from services.llm_longctx.tests.tiny_models import tiny_decoder

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
    hows = (method("dense"), DUO, POWER, RECYCLED)
    answers = engine.generate([Request(prompt(40), how, TINY_PLAN, max_tokens=9) for how in hows])
    dense, streaming, striding, copying = (one.usage for one in answers)
    assert dense.kv_bytes == dense.kv_bytes_dense == engine.dense_bytes(48)
    assert dense.kv_ratio == dense.prefill_density == 1
    assert streaming.kv_ratio < 0.7
    assert 0.3 < striding.prefill_density < 0.9
    assert copying.full_steps == 8 // 3
    assert copying.kv_bytes > dense.kv_bytes


def test_answers_behind_a_cached_prefix_hold_what_they_would_hold_without():
    engine, drawn = Engine(tiny_decoder(), page=8), [Sampling(1.0, seed=i) for i in range(3)]
    asked = [GenerationRequest(prompt(96), drawn, max_tokens=20) for _ in range(2)]
    for one in asked:
        drain(engine.scheduler, one)
    assert [one.stats.cached_tokens for one in asked] == [0, 88]
    assert asked[1].stats.kv_bytes == asked[0].stats.kv_bytes == asked[0].stats.kv_bytes_dense


@pytest.mark.parametrize("length", [6, 20, 96])
def test_dense_answers_of_one_request_beside_sliding_layers_hold_what_dense_holds(length):
    engine, drawn = Engine(build("gemma3"), page=4), [Sampling(1.0, seed=i) for i in range(3)]
    asked = GenerationRequest(IDS[:length], drawn, max_tokens=14)
    drain(engine.scheduler, asked)
    assert asked.stats.kv_bytes == asked.stats.kv_bytes_dense


@pytest.mark.parametrize("dense_layers", [(), (0,)])
def test_density_is_that_of_all_pairs_however_many_chunks_they_came_in(dense_layers):
    power = method("power", block=16, window=1, dense_layers=dense_layers)
    engine = Engine(tiny_decoder(positions=2100), power, page=16)
    rows = torch.arange(2048) // 16
    near = rows[:, None] - rows
    seen = torch.ones(2048, 2048, dtype=torch.bool).tril()
    read = seen & ((near & (near - 1) == 0) | (rows == 0))
    share = float(read.sum() / seen.sum())
    shares = [1.0 if layer in dense_layers else share for layer in range(2)]
    first, again = (serve(engine, Request(prompt(2048), max_tokens=1)).usage for _ in range(2))
    assert first.prefill_density == pytest.approx(sum(shares) / 2, abs=0.01)
    assert (again.cached_tokens, 0 < again.prefill_density < first.prefill_density) == (2032, True)


@pytest.mark.parametrize(("call", "error", "word"), [
    (lambda m: Engine(m, "denser"), InvalidOption, "denser"), (lambda m: Engine(m, page=0), InvalidOption, "page"),
    (lambda m: Engine(m, plan={"schema": "head-plan/1", "roles": [[1]]}), BadInput, "roles is 1x1"),
    (lambda m: Engine(m).step(1), InvalidOption, "Nothing was read"),
    (lambda m: Engine(m).entries(0, 0), InvalidOption, "Nothing was read"),
    (lambda m: Engine(m).prefill([1, 2], [1]), InvalidOption, "don't make a prompt"),
    (lambda m: Engine(m).generate([Request([])]), InvalidOption, "prompt needs tokens"),
    (lambda m: Engine(m).generate([Request([1, 999])]), InvalidOption, "below 272"),
    (lambda m: Engine(m, backend="abacus"), BadInput, "abacus"),
])  # fmt: skip
def test_what_can_not_be_is_refused_with_a_reason(tiny, call, error, word):
    with pytest.raises(error, match=word):
        call(tiny)


def test_a_prompt_may_be_empty_or_one_token(tiny):
    engine = engine_of(tiny, "dense")
    assert engine.prefill([]).shape == (0, 272)
    assert torch.allclose(engine.step(5), engine.prefill([5])[0], atol=1e-10)


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


def test_a_host_has_what_it_always_had_and_a_gpu_gives_pages_what_is_free(monkeypatch):
    assert choose_room("cpu", 16) == choose_room("cpu", 4) == (2 * 2**30, 8)
    closed = torch.nn.Module()
    seen, closed.itself = weakref.ref(closed), closed  # as an engine with recorded steps holds itself
    del closed
    cached = [20 * 2**30]

    def empty_cache():
        assert seen() is None, "a closed engine that still holds its pages"
        cached.clear()

    def free(device):
        return {"cuda:1": 50 * 2**30}[device] - sum(cached), 80 * 2**30

    monkeypatch.setattr(torch.cuda, "empty_cache", empty_cache)
    monkeypatch.setattr(torch.cuda, "mem_get_info", free)
    assert (choose_room("cuda:1", 16), choose_room("cuda:1", 4)) == ((40 * 2**30, 64), (20 * 2**30, 64))


@pytest.mark.parametrize(("how", "chunks", "held"), [
    *(("dense", chunks, 60) for chunks in (None, [16, 16, 18], [1, 49])), (method("duo", sink=2, recent=6), None, 8),
])  # fmt: skip
def test_sliding_layers_hold_their_window_and_dense_is_the_decoder(how, chunks, held):
    model = build("gemma3", torch.float64)
    engine = Engine(model, how, ROLES, page=4)
    sequence = engine.open()
    read = sequence.prefill(IDS[:50], chunks)
    logits = torch.cat((read, torch.stack([sequence.step(token) for token in IDS[50:60]])))
    if how == "dense":
        torch.testing.assert_close(logits, model(torch.tensor([IDS[:60]]))[0], atol=1e-10, rtol=0)
    found = [[len(sequence.entries(layer, g).positions) for g in range(2)] for layer in range(3)]
    assert found[2] == [60, held]
    assert max(found[0] + found[1]) <= 9
    sequence.close()
    assert engine.kv_bytes() == 0


@pytest.mark.parametrize("how", ["keydiff", "snapkv", "adakv", "pyramidkv", "streamingllm"])
@pytest.mark.parametrize("share", [0.9, 0.5])
def test_a_budget_beside_sliding_layers_is_used_up(how, share):
    engine = Engine(build("gemma3", torch.float64), page=4)
    budget = int(share * engine.dense_bytes(400))
    held = fit_policy(engine, method(how), None, budget, 400, 0).nbytes(400, 0, engine.pool)
    assert 0.95 * budget <= held <= budget


def test_scores_of_a_bfloat16_cache_are_float32(monkeypatch):
    seen = []

    def after_decode(self, step, scores):
        for g, (held, found) in enumerate(zip(step.heads, scores, strict=True)):
            q = step.q.double().unflatten(0, (len(scores), -1))[g]
            seen.append((found - (q @ held.k.double().T * q.shape[-1] ** -0.5).softmax(-1)).abs().max())
        return CacheUpdate(memo=step.memo)

    monkeypatch.setattr(type(RECYCLED), "after_decode", after_decode)
    engine = Engine(tiny_decoder().bfloat16(), method=method("recycled", budget=4, stride=1))
    engine.prefill(prompt(40))
    engine.step(1)
    assert max(seen) < 1e-6


@pytest.mark.parametrize(("window", "between"), [("released", 5), ("exact", 4)])
def test_a_prompt_that_follows_steps_leaves_a_streaming_head_its_newest_entries(window, between):
    s = Engine(tiny_decoder(), method("duo", sink=2, recent=5, window=window), TINY_PLAN, page=4).open()
    ids, read = prompt(40), 0
    for chunk, steps in ((12, 3), (2, 4), (1, 1), (9, 6)):
        s.prefill(ids[read : read + chunk])
        for token in ids[read + chunk : read + chunk + steps]:
            s.step(token)
        read += chunk + steps
        assert sorted(s.entries(0, 1).positions.tolist()) == [0, 1, *range(read - between, read)]


def test_a_prompt_that_follows_steps_reads_what_a_sliding_layer_holds():
    whole = Engine(build("gemma3")).prefill(IDS[:60])
    s = Engine(build("gemma3")).open()
    s.prefill(IDS[:30])
    for token in IDS[30:43]:
        s.step(token)
    torch.testing.assert_close(s.prefill(IDS[43:50])[-1], whole[49], atol=1e-4, rtol=1e-4)
    for at in range(50, 60):
        torch.testing.assert_close(s.step(IDS[at]), whole[at], atol=1e-4, rtol=1e-4)
