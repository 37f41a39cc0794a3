"""The engine by hand: bytes by formula, room, refusals, windows that slide; its scheduler under pressure."""

import weakref

import pytest
import torch

from fovea.errors import BadInput, InvalidOption
from services.llm_longctx.engine import Engine, GenerationRequest, Request, Sampling
from services.llm_longctx.engine.attention.method_policy import Policy
from services.llm_longctx.kv_cache import PoolExhausted
from services.llm_longctx.methods import method
from services.llm_longctx.methods.core.hook_results import CacheUpdate, RetentionPolicy
from services.llm_longctx.serving.decoder_model import choose_room
from services.llm_longctx.serving.method_selection import fit_policy
from services.llm_longctx.tests.conftest import Ear, most_running
from services.llm_longctx.tests.hooks import Listeners, drain, serve
from services.llm_longctx.tests.test_decode_step import IDS, ROLES, build
from services.llm_longctx.tests.tiny_models import tiny_decoder
from shared.lm.builders import llama

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


STREAMING = method("duo", sink=2, recent=5, roles=[[0, 0], [0, 0]])


@pytest.fixture(scope="module")
def long():
    torch.manual_seed(0)
    return llama(vocab=64, width=16, layers=2, heads=4, kv_heads=2, hidden=16, positions=4096).eval()


def ask(engine, ids, how="dense", n=1, new=8, **facts):
    ears = [Ear() for _ in range(n)]
    temperature = facts.pop("temperature", 0)
    samplings = [Sampling(temperature=temperature, seed=i) for i in range(n)]
    policy = engine.policy_of(how, TINY_PLAN)
    return GenerationRequest(ids, samplings, new, policy=policy, hooks=Listeners(*ears), **facts), ears


def run(engine, *requests, limit=4000):
    for one, _ in requests:
        engine.scheduler.add_request(one)
    for _ in range(limit):
        if not engine.scheduler.in_flight:
            return
        engine.scheduler.step()
    pytest.fail("the scheduler does not come to an end")


def test_a_pool_admits_more_of_those_who_hold_less(tiny):
    def most(how):
        engine = Engine(tiny, page=8, max_batch=64, kv_bytes=400 * 8 * 2 * 8 * 8)
        asked = [ask(engine, prompt(120, i), how, new=30) for i in range(20)]
        for one, _ in asked:
            engine.scheduler.add_request(one)
        peak = most_running(engine.scheduler)
        assert all(ear.ids for _, (ear,) in asked)
        return peak

    dense, streaming = most(method("dense")), most(STREAMING)
    assert dense <= 7
    assert streaming >= 2.5 * dense


@pytest.mark.parametrize("n", [1, 63, 64, 65, 511, 512, 513, 1100])
def test_chunks_end_on_the_grid_or_with_the_prompt(long, n):
    def borders(how, read=0):
        ends = []
        policy = Policy.of(long.config, how, TINY_PLAN)
        while read < n:
            read += policy.next_chunk(read, n)
            ends.append(read)
        return ends

    assert borders(method("dense")) == borders(DUO) == [*range(512, n, 512), n]
    if n > 64:
        assert borders(method("dense"), 64) == [*range(512, n, 512), n], "a cached prefix joins the same grid"
    single = type("Single", (type(ACT),), {"supports": type(ACT.supports)(chunked_prefill=False), "name": "single"})
    assert borders(single()) == [n]


@pytest.mark.parametrize(
    "how", [method("dense"), POWER.with_knobs(block=64), RAZOR, RECYCLED, DUO], ids=lambda m: m.name
)
def test_a_prefix_that_was_read_is_not_read_again_and_changes_no_bit_of_the_prompts_logits(long, how):
    ids = [(11 * i + i * i) % 64 for i in range(1094)]
    cold, warm = Engine(long), Engine(long)
    run(warm, ask(warm, ids[:1024] + [5] * 9, how, new=1))
    hits = []
    for engine in (cold, warm):
        one = ask(engine, ids, how, new=6, top_logprobs=3)
        run(engine, one)
        hits.append((one[1][0].tokens, one[0].stats.cached_tokens))
    assert [cached for _, cached in hits] == [0, 1024]
    (first_cold, *later_cold), (first_warm, *later_warm) = (tokens for tokens, _ in hits)
    assert (first_cold.logprob, first_cold.top) == (first_warm.logprob, first_warm.top), "bit for bit"
    # Decoding merges shared pages with own ones where the cold run has one run of pages: the same sums in other order.
    assert [t.id for t in later_cold] == [t.id for t in later_warm]
    assert [t.logprob for t in later_cold] == pytest.approx([t.logprob for t in later_warm], abs=1e-5)


@pytest.mark.parametrize("n", [15, 16, 33])
def test_answers_that_share_a_prompt_are_compared_with_dense_ones_that_do(long, n):
    engine = Engine(long)
    dense, streaming = ask(engine, [5] * n, n=4, new=40), ask(engine, [5] * n, STREAMING, n=4, new=40)
    run(engine, dense, streaming)
    assert (dense[0].stats.kv_ratio, streaming[0].stats.kv_bytes_dense) == (1, dense[0].stats.kv_bytes)
    assert streaming[0].stats.kv_ratio < 1


def test_what_is_read_again_after_a_preemption_does_not_count_as_cached_or_not(long):
    engine = Engine(long, kv_bytes=1)
    run(engine, ask(engine, [5] * 500, new=1))
    asked = [ask(engine, [5] * 500 + [i], new=1200) for i in range(4)]
    run(engine, *asked, limit=12_000)
    assert sum(request.stats.preempted for request, _ in asked) > 0, "the pool is too large for this test"
    assert {request.stats.cached_tokens for request, _ in asked} == {496}


def test_cached_prefixes_give_way_before_anybody_is_preempted(long):
    engine = Engine(long, kv_bytes=1)
    asked = [ask(engine, [i] * 1500, new=2) for i in range(6)]
    for one in asked:
        run(engine, one)
        assert one[0].stats.preempted == 0
        assert engine.pool.held <= engine.pool.capacity
    assert len(engine.prefix_cache) > 0
    again = ask(engine, [5] * 1500, new=2)
    run(engine, again)
    assert again[0].stats.cached_tokens > 0, "the latest is still there"
    gone = ask(engine, [0] * 1500, new=2)
    run(engine, gone)
    assert gone[0].stats.cached_tokens == 0, "the first went first"
    engine.scheduler.close()
    assert engine.pool.held == 0
