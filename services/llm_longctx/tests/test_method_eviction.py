"""Eviction by scores against published scores, kept sets and logits; its rules of order, count and protection."""

import json
import math
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fovea.errors import BadInput, InvalidOption
from services.interpretability.head_plans.statistic import query_centres
from services.llm_longctx.engine import Engine, Request
from services.llm_longctx.methods import kvzip, method
from services.llm_longctx.methods.core.eviction.allocation import count_kept, keep_per_layer
from services.llm_longctx.methods.core.eviction.method import EvictionMethod
from services.llm_longctx.methods.core.hook_inputs import CacheView, ScoringView
from services.llm_longctx.methods.keydiff import KeyDiff
from services.llm_longctx.methods.knorm import KNorm
from services.llm_longctx.methods.streaming_llm import StreamingLlm
from services.llm_longctx.methods.tova import Tova
from services.llm_longctx.tests.test_engine_pages import prompt
from services.llm_longctx.tests.tiny_models import random_decoder, tiny_decoder
from shared.lm.attention import sdpa
from shared.lm.builders import llama
from shared.lm.head_plan import HeadPlan
from shared.lm.rope import rotate, rotation
from tests.golden import read_golden
from tests.harness.golden_llama import fill_llama, uniform

GOLDEN = read_golden(Path(__file__).parent / "golden/eviction.arrays")
CASES = json.loads((Path(__file__).parent / "golden/eviction.json").read_text("utf8"))


def drawn(name, *shape):
    return torch.from_numpy(uniform((zlib.crc32(name.encode()) + 211) % 2**32, math.prod(shape)).reshape(shape))


def inputs(layer, n):
    """Q [4,n,16], rotated; k and v [2,n,16] of one layer."""
    q = turned(0.8 * drawn(f"qmean/{layer}", 1, 64) + 1.2 * drawn(f"q/{layer}/{n}", n, 64), 0)
    spread = (1.2 + 0.8 * drawn(f"kscale/{layer}/{n}", 2, n, 1)) * torch.tensor([1.0, 1.6]).double()[:, None, None]
    k = (0.9 * drawn(f"kmean/{layer}", 2, 1, 16) + 1.2 * drawn(f"k/{layer}/{n}", 2, n, 16)) * spread
    return q, k, drawn(f"v/{layer}/{n}", 2, n, 16) * (1.1 + 0.9 * drawn(f"vscale/{layer}/{n}", 2, n, 1))


def turned(hidden, begin):
    """Queries [4,T,16] of attention inputs [T,64] at positions from `begin` on."""
    at = torch.arange(begin, begin + len(hidden))
    turn = rotation(1 / 10000.0 ** (torch.arange(0, 16, 2).float() / 16), at, torch.float64)
    return rotate(hidden.view(1, len(hidden), 4, 16), turn)[0].transpose(0, 1)


def beside(layer, n, surrogate):
    replays = []
    for r, start in enumerate(range(0, n, 64)):
        end, stem = min(start + 64, n), f"{layer}/{n}/{r}"
        tokens = end - start + (13 if r else 5)
        hidden = 0.8 * drawn(f"qmean/{layer}", 1, 64) + 1.2 * drawn(f"rq/{stem}", tokens, 64)
        k = 0.9 * drawn(f"kmean/{layer}", 2, 1, 16) + 1.2 * drawn(f"rk/{stem}", 2, tokens, 16)
        facts = {"start": start, "end": end, "hidden": hidden, "q": turned(hidden, n), "k": k}
        replays.append(facts | {"v": drawn(f"rv/{stem}", 2, tokens, 16)})
    hidden = 0.8 * drawn(f"qmean/{layer}", 1, 64) + 1.2 * drawn(f"q/{layer}/{n}", n, 64)
    wo = drawn(f"wo/{layer}", 64, 64) * math.sqrt(3 / 64)
    maps = trained(layer, surrogate) if surrogate else None
    return {"rope_theta": 10000.0, "hidden": hidden, "wo": wo, "replays": replays, "surrogate": maps}


def trained(layer, kind):
    if kind == "mlp":
        inner = {"weight_in": drawn(f"zap/{layer}/weight_in", 24, 64) / 4, "bias_in": drawn(f"zap/{layer}/bias_in", 24)}
        return inner | {"weight": drawn(f"zap/{layer}/weight2", 2, 24), "bias": drawn(f"zap/{layer}/bias2", 2) - 2}
    bias = drawn(f"zap/{layer}/bias", 2) - 2 + (3 * torch.arange(2) if kind == "skewed" else 0)
    return {"weight": drawn(f"zap/{layer}/weight", 2, 64) / 4, "bias": bias}


def kept(name, *shape):
    bits = np.unpackbits(GOLDEN[name], count=math.prod(shape)).astype(bool)
    return torch.from_numpy(bits.reshape(shape))


@pytest.mark.parametrize("n", [96, 257])
@pytest.mark.parametrize("case", CASES["cases"])
def test_scores_and_kept_sets_are_the_published_ones(monkeypatch, case, n):
    monkeypatch.setattr(kvzip, "_TILE", (4000, 4000))  # so that a replay of this size takes several
    facts = CASES["cases"][case]
    how, layers = method(facts["method"], **facts["knobs"]), [inputs(layer, n) for layer in range(2)]
    more = [beside(layer, n, facts["surrogate"]) for layer in range(2)]
    scores = torch.stack([how.scores(*one, **given) for one, given in zip(layers, more, strict=True)])
    norms = torch.stack([how.norms(one[2], given["wo"]) for one, given in zip(layers, more, strict=True)])
    if f"scores_{case}_N{n}" in GOLDEN:
        wanted = torch.from_numpy(GOLDEN[f"scores_{case}_N{n}"]).double()
        assert torch.equal(scores.isposinf(), wanted.isposinf())
        finite = wanted.isfinite()
        largest = wanted.masked_fill(~finite, 0).abs().amax(-1, keepdim=True).expand_as(wanted)
        assert ((scores - wanted)[finite].abs() <= 1e-5 * largest[finite]).all()
    for ratio in (0.25, 0.5, 0.75) if facts["ratios"] else (None,):
        cut = how if ratio is None else how.with_knobs(ratio=ratio)
        name = f"kept_{case}_N{n}" if ratio is None else f"kept_{case}_N{n}_r{ratio}"
        assert torch.equal(cut.keep(scores, norms=norms if facts["norms"] else None), kept(name, 2, 2, n))
        if case in {"streamingllm", "adakv", "expected_attention", "criticalkv"}:
            q, k, v = layers[1]
            answer = cut.reference(q, k, v, q[:, -3:], k[:, -3:], v[:, -3:], layer=1, layers=2, **more[1])
            assert torch.equal(answer.extras["kept"], kept(name, 2, 2, n)[1])
            assert answer.mask.shape == (4, 3, n + 3)


@pytest.fixture(scope="module")
def golden_llama():
    return fill_llama(211, 192, 2)


def held(sequence, tokens):
    rows = [[sequence.entries(layer, g).positions for g in range(2)] for layer in range(2)]
    return torch.stack([torch.stack([torch.isin(torch.arange(tokens), one) for one in row]) for row in rows])


@pytest.mark.parametrize("case", CASES["llama"])
def test_the_engine_keeps_and_says_what_is_published(golden_llama, case):
    ids, facts = GOLDEN["ids"].tolist(), CASES["llama"][case]
    for ratio in (0.25, 0.5):
        s = Engine(golden_llama, method(facts["method"], ratio=ratio, **facts["knobs"]), page=16).open()
        read = s.prefill(ids[:160], [100, 50, 10])
        assert np.abs(read[-1].numpy() - GOLDEN["prefill_last"]).max() < 1e-4
        assert torch.equal(held(s, 160), kept(f"llama_{case}_r{ratio}_kept", 2, 2, 160))
        said = torch.stack([s.step(token) for token in ids[160:168]])
        assert np.abs(said.numpy() - GOLDEN[f"llama_{case}_r{ratio}_decode"]).max() < 1e-4


@pytest.mark.parametrize("how", [KeyDiff, Tova, KNorm], ids=lambda how: how.name)
def test_cuts_while_decoding_are_the_published_ones(golden_llama, how):
    ids = GOLDEN["ids"].tolist()
    s = Engine(golden_llama, how(prefill="none", every=8, budget=64), page=16).open()
    s.prefill(ids[:160])
    said, lengths = [], []
    for token in ids[160:184]:
        said.append(s.step(token))
        lengths.append(len(s.entries(1, 1).positions))
    assert lengths == GOLDEN[f"every8_{how.name}_lengths"].tolist()
    assert torch.equal(held(s, 184), kept(f"every8_{how.name}_kept", 2, 2, 184))
    assert np.abs(torch.stack(said).numpy() - GOLDEN[f"every8_{how.name}_decode"]).max() < 1e-4


@pytest.mark.parametrize(("tokens", "ratio", "budget", "kept"), [
    (100, 0.1, None, 10), (100, 1 - 0.9, None, 10), (10, 0.01, None, 1), (0, 0.5, None, 0), (9, 0.5, 20, 9),
    (9, 1, 4, 4),
])  # fmt: skip
def test_counts(tokens, ratio, budget, kept):
    assert count_kept(tokens, ratio, budget) == kept
    assert StreamingLlm(ratio=ratio, budget=budget).counts(tokens, 3) == [kept] * 3


def test_the_newer_of_equal_entries_stays():
    assert KNorm(ratio=0.5).keep(torch.zeros(1, 2, 5))[0].tolist() == [[False] * 3 + [True] * 2] * 2
    rows = keep_per_layer([torch.zeros(3)] * 2, [torch.arange(3)] * 2, 1, 0.0, "floor")
    assert [row.tolist() for row in rows] == [[False, False, True]] * 2
    rows = keep_per_layer([torch.zeros(3)] * 3, [torch.arange(3)] * 3, 1, 0.0, "floor")
    assert sum(int(row.sum()) for row in rows) == 3


def test_what_is_protected_stays_however_little_is_to_be_kept():
    how = StreamingLlm(sink=4, budget=2)
    q, k, v = inputs(0, 96)
    assert how.keep(how.scores(q, k, v)[None])[0].nonzero()[:, 1].tolist() == [0, 1, 2, 3] * 2
    with pytest.raises(InvalidOption, match="can't hold"):
        StreamingLlm(sink=4).fit(2 * 2 * (4 + 3), tiny_decoder().config, None, 50, 3)
    assert how.fit(2 * 2 * (5 + 3), tiny_decoder().config, None, 50, 3).budget == 5


@given(st.data())
def test_counts_add_up_and_smaller_shares_are_subsets(data):
    n, seed = data.draw(st.integers(1, 40)), data.draw(st.integers(0, 99))
    draw = torch.Generator().manual_seed(seed)
    scores = torch.randint(-3, 4, (2, 3, n), generator=draw).double()
    small, large = sorted(data.draw(st.lists(st.floats(0.01, 1), min_size=2, max_size=2)))
    less, more = (KNorm(ratio=ratio).keep(scores) for ratio in (small, large))
    assert (more | ~less).all()
    assert torch.equal(less, KNorm(ratio=small).keep(scores * 7))
    for rule in ("floor", "mix"):
        safeguard = data.draw(st.floats(0, 1))
        how = KNorm(ratio=small, allocation="layer", safeguard=safeguard, safeguard_rule=rule)
        assert how.keep(scores).sum((1, 2)).tolist() == [3 * how.counts(n, 2)[0]] * 2
        assert (how.keep(scores).sum(2) >= int(how.counts(n, 2)[0] * safeguard)).all()
    assert KNorm(ratio=1).keep(scores).all()


def test_the_order_in_which_entries_are_held_changes_nothing():
    q, k, v = inputs(0, 96)
    how = KeyDiff(ratio=0.3)
    shuffled = torch.randperm(96, generator=torch.Generator().manual_seed(1))
    heads = [[CacheView(k[g][at], v[g][at], at) for g in range(2)] for at in (torch.arange(96), shuffled)]
    one, other = (how.keep_positions(held, q[:, -1:], 96, 0, 28) for held in heads)
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_numbers_that_are_none_are_refused():
    class Broken(EvictionMethod):
        """Divides by nothing."""

        name = "broken"

        def score(self, view):
            return view.k[..., 0] * math.nan

    with pytest.raises(ValueError, match="with numbers"):
        Engine(tiny_decoder(), Broken(), page=8).prefill(prompt(20))


def test_cuts_while_decoding_need_no_pages_in_a_full_pool(tiny):
    """Prompts that share pages until the first cut: nobody may lose entries, or more than its place, by it."""
    how = KNorm(prefill="none", every=3, budget=20)
    asked = [Request([*prompt(40, 2), *prompt(4, i)], how, max_tokens=30, temperature=1.0, seed=i) for i in range(5)]
    pressed = Engine(tiny, page=8, kv_bytes=1).generate(asked)
    for request, answer in zip(asked, pressed, strict=True):
        assert answer.tokens == Engine(tiny, page=8).generate([request])[0].tokens


THETA = 1 / 10000.0 ** (torch.arange(0, 16, 2).double() / 16)
H, G, D, N = 4, 2, 16, 50


def test_a_model_whose_heads_are_all_full_is_not_cut():
    plan = {"schema": "head-plan/1", "roles": [[1, 1], [1, 1]]}
    engine = Engine(tiny_decoder(), method("kvzip", ratio=0.3), plan, page=4)
    engine.prefill([1, 2, 3, 4, 5, 6])
    assert len(engine.entries(1, 0).positions) == 6


def turn(x: torch.Tensor, position) -> torch.Tensor:
    """Rotate complex pairs [...,f] to positions."""
    return x * torch.polar(torch.ones_like(THETA), THETA * position)


def plan_of(mean: torch.Tensor, size: torch.Tensor) -> HeadPlan:
    """A plan from centres [L,H,f]."""
    tables = {"real": mean.real.tolist(), "imag": mean.imag.tolist(), "size": size.tolist()}
    return HeadPlan.parse({"schema": "head-plan/1", "centres": tables})


def view_of(keys: torch.Tensor, positions: torch.Tensor, tokens: int) -> ScoringView:
    rotated = torch.stack([turn(keys[:, i], int(p)) for i, p in enumerate(positions)], 1)
    k = torch.cat((rotated.real, rotated.imag), -1).float()
    q = torch.zeros(len(keys) * H // G, 1, D)
    at = positions.expand(len(keys), -1)
    return ScoringView(1, q, k, k, at, tokens, tuple(range(len(keys))), THETA.float())


@pytest.mark.parametrize("mode", ["per_head", "union"])
def test_scores_are_the_mean_logits_of_the_centre_over_distances_and_what_the_spread_adds(mode):
    torch.manual_seed(3)
    mean, keys = torch.randn(2, H, D // 2, dtype=torch.complex128), torch.randn(G, N, D // 2, dtype=torch.complex128)
    size = mean.abs() * torch.rand(2, H, D // 2) + mean.abs()
    positions = torch.arange(N) * 3 + 1
    how = method("triattention", recent=1, protect_prompt=False, mode=mode).bind(plan_of(mean, size))
    found = how.score(view_of(keys, positions, 400))
    expected = torch.zeros(H, N, dtype=torch.float64)
    for h in range(H):
        for i, p in enumerate(positions.tolist()):
            key = turn(keys[h // 2, i], p)
            logits = [(turn(mean[1, h], 400 + 2**e) * key.conj()).real.sum() for e in range(17)]
            expected[h, i] = sum(logits) / 17 + ((size[1, h] - mean[1, h].abs()) * key.abs()).sum()
    expected = (expected - expected.mean(1, keepdim=True)) / expected.std(1, correction=0, keepdim=True)
    best = expected.view(G, 2, N).amax(1)
    best = best.amax(0).expand(G, N) if mode == "union" else best
    torch.testing.assert_close(found.double(), best, atol=2e-3, rtol=0)


@pytest.mark.parametrize("qk_norm", [False, True])
def test_calibration_averages_queries_before_their_rotation(qk_norm):
    """In a Qwen 3 queries have a norm per head before they are rotated."""
    sizes = {"vocab": 272, "width": 32, "layers": 2, "heads": 4, "kv_heads": 2, "hidden": 48, "positions": 192}
    net, seen = random_decoder(lambda: llama(**sizes, qk_norm=qk_norm)), {}
    config = net.config
    texts = [[(7 * i + 3) % config.vocab for i in range(40)], [(5 * i + 1) % config.vocab for i in range(23)]]

    def attend(layer, q, k, v, _offset):
        pairs = torch.complex(*q[0].double().chunk(2, -1))
        theta = 1 / config.rope_theta ** (torch.arange(0, config.head_dim, 2).double() / config.head_dim)
        back = torch.polar(torch.ones(q.shape[1], len(theta)).double(), -torch.arange(q.shape[1])[:, None] * theta)
        seen.setdefault(layer, []).append(pairs * back[:, None])
        return sdpa(q, k.transpose(1, 2), v.transpose(1, 2))

    for ids in texts:
        net(torch.tensor(ids)[None], attend=attend)
    found = query_centres(net, texts)
    for layer, parts in seen.items():
        every = torch.cat(parts)
        mean, size = every.mean(0), every.abs().mean(0)
        for name, wanted in (("real", mean.real), ("imag", mean.imag), ("size", size)):
            got = torch.tensor(getattr(found, name)[layer]).double()
            torch.testing.assert_close(got, wanted, atol=1e-3 * float(size.max()), rtol=1e-3)
    plan = HeadPlan.parse({"schema": "head-plan/1", "centres": found.model_dump()}).check(config)
    assert HeadPlan.parse(plan.text()).digest == plan.digest
    with pytest.raises(BadInput, match="query centres"):
        plan_of(torch.zeros(1, 1, 2, dtype=torch.complex64), torch.zeros(1, 1, 2)).check(config)


@pytest.mark.parametrize("calibrated", [True, False])
def test_decoding_keeps_the_prompt_the_newest_and_the_budget_and_frees_pages(decoder, calibrated):
    config = decoder.config
    mean = torch.randn(config.layers, config.heads, config.head_dim // 2, dtype=torch.complex64)
    plan = plan_of(mean, 2 * mean.abs()) if calibrated else None
    engine = Engine(decoder, page=4)
    prompt = [(3 * i + 1) % config.vocab for i in range(20)]
    s = engine.open(method("triattention", budget=16, every=8, recent=6), plan)
    assert (s.state.policy.method._centres is not None) == calibrated
    s.prefill(prompt)
    most = 0
    for i in range(64):
        s.step((5 * i) % config.vocab)
        most = max(most, s.kv_bytes())
    held = s.state.cache.entries(1, 0).positions.sort().values.tolist()
    assert (held[:20], held[-6:]) == (list(range(20)), list(range(78, 84)))
    assert len(held) == 20 + 16
    assert most <= s.state.policy.nbytes(20, 64, engine.pool) < engine.dense_bytes(84)
    assert "centres" not in s.state.policy.method.model_dump_json()
    s.close()
    fitted = method("triattention").fit(engine.model.config.layers * config.kv_heads * 30, config, None, 60, 4)
    assert not fitted.protect_prompt
    assert fitted.budget < 30
