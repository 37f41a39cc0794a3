"""Interventions and captures of one request: against a traced forward, in a batch, over cached prefixes, n times."""

import numpy as np
import pytest
import torch

from services.llm_longctx.engine import Engine, GenerationRequest, Request, Sampling
from services.llm_longctx.engine.taps import (
    ActivationCapture,
    AttentionCapture,
    LensCapture,
    PlacedEdit,
    RequestTaps,
    TokenRange,
)
from services.llm_longctx.kernels import backends
from services.llm_longctx.methods import methods
from services.llm_longctx.tests.conftest import Ear, tiny_decoder
from services.llm_longctx.tests.hooks import Listeners, drain, serve
from services.llm_longctx.tests.method_contract.oracle import PLAN, trials
from services.llm_longctx.tests.test_decode_step import IDS, ROLES, build
from services.llm_longctx.tests.test_method_contract import STOOD_FOR
from shared.lm.interventions import Add, Attend, Replace, Scale, Uniform
from shared.lm.taps import trace
from tests.harness.hypothesis_profiles import in_depth

N = 70
DECODE = TokenRange(N)
ALL = TokenRange()
ROWS = TokenRange.of([3, 64, N - 1, N + 2], N, 600)
FAMILIES = ["llama", "gemma3", "gpt2"]
BACKENDS = ["auto", "cpu_torch"] if "cpu_ext" in backends() else ["cpu_torch"]
WAYS = [*((family, BACKENDS[0]) for family in FAMILIES), *(("llama", other) for other in BACKENDS[1:])]


def vector(width: int = 40, seed: int = 0) -> torch.Tensor:
    return torch.randn(width, generator=torch.Generator().manual_seed(seed))


def edits_of(kind: str) -> list[PlacedEdit]:
    replaced = TokenRange.of([5, N - 1, N + 1], N, 600)
    known = {
        "residual": [(Add("resid_post.1", 2 * vector()), ALL), (Add("embed", vector(seed=1)), DECODE)],
        "middle": [(Add("attn_out.0", vector()), ALL), (Add("final", vector(seed=2)), DECODE)],
        "heads": [(Scale("z.1", 0.0, heads=[1, 3]), ALL), (Scale("mlp_out.0", 0.5), DECODE)],
        "queries": [(Uniform(2, heads=[0]), ALL), (Scale("attn_out.1", 3.0), ALL)],
        "keys": [(Scale("k.1", 1.5, heads=[0]), ALL), (Scale("v.2", -1.0), DECODE)],
        "attend": [(Attend(2, [0, 2], [], [3, 5, N + 1], [0.25, 0.5, 1.0]), ALL)],
        "normed": [(Scale("normed", 2.0), ALL)],
        "set": [(Replace("resid_post.1", vector()[None, None]), replaced)],
        "rows": [(Replace("z.1", vector(4, seed=5).view(1, 4, 1, 1), [0, 3]), ROWS),
                 (Replace("v.0", vector(4).view(1, 4, 1, 1)), ROWS)],
        "listed": [(Add("resid_pre.2", 3 * vector()), TokenRange.of([0, -1, N + 2], N, 600))],
    }  # fmt: skip
    return [PlacedEdit(*one) for one in known[kind]]


def traced(net, ids: list[int], edits: list[PlacedEdit], capture=()):
    placed = []
    for one in edits:
        at = one.tokens.within(0, len(ids))
        if isinstance(one.edit, Attend):
            for query in at:
                seen = [(k, w) for k, w in zip(one.edit.keys, one.edit.weights, strict=True) if k <= query]
                keys, weights = [k for k, _ in seen], [w for _, w in seen]
                placed += [Attend(one.edit.layer, h, query, keys or [0], weights or [0.0]) for h in one.edit.head]
        else:
            fields = {f: getattr(one.edit, f) for f in one.edit.__slots__} | {"positions": at}
            if isinstance(one.edit, Replace) and one.edit.value.shape[1] > 1:
                fields["value"] = torch.zeros(1, len(ids), *one.edit.value.shape[2:])
                for row, position in enumerate(at):
                    fields["value"][0, position] = one.edit.value[0, row]
            placed.append(type(one.edit)(**fields))
    return trace(net, torch.tensor([ids]), edits=placed, capture=capture)


def answer(net, taps: RequestTaps | None, backend: str = "auto", how="dense", **more):
    engine = Engine(net, how, None if how == "dense" else ROLES, page=16, backend=backend)
    (found,) = engine.generate([Request(IDS[:N], max_tokens=5, taps=taps, **more)])
    return found


def captured(found, capture: int) -> np.ndarray:
    return np.concatenate([np.stack(one.values) for one in found.captured if one.capture == capture])


@pytest.mark.parametrize(("family", "backend"), WAYS)
@pytest.mark.parametrize(
    "kind", ["residual", "middle", "heads", "queries", "keys", "attend", "normed", "listed", "set", "rows"]
)
def test_a_served_request_computes_what_a_traced_forward_does(kind, family, backend):
    net, edits = build(family), edits_of(kind)
    lens = LensCapture(tuple(range(3)), 4, ALL)
    found = answer(net, RequestTaps(tuple(edits), (ActivationCapture("resid_post.2", ALL), lens)), backend)
    ids = [*IDS[:N], *found.tokens[:-1]]
    oracle = traced(net, ids, edits, [f"resid_post.{layer}" for layer in range(3)])
    np.testing.assert_allclose(captured(found, 0), oracle["resid_post.2"][0].numpy(), atol=3e-4, rtol=1e-4)
    assert [p for one in found.captured if one.capture == 0 for p in one.positions] == list(range(len(ids)))
    assert found.tokens == oracle.logits[0, N - 1 :].argmax(-1).tolist()
    streams = torch.stack([oracle[f"resid_post.{layer}"][0] for layer in range(3)], 1)
    expected = net.read_logits(streams).log_softmax(-1).topk(4).values.numpy()
    np.testing.assert_allclose(captured(found, 1), expected, atol=1e-3)


@pytest.mark.parametrize(("family", "backend"), WAYS)
def test_every_site_is_captured_as_a_trace_has_it(family, backend):
    net = build(family)
    inner = "resid_pre resid_mid resid_post q k v q_rot k_rot z attn_out mlp_out"
    sites = ["embed", "final", "normed", *(f"{site}.1" for site in inner.split())]
    found = answer(net, RequestTaps(captures=tuple(ActivationCapture(site, ALL) for site in sites)), backend)
    oracle = traced(net, [*IDS[:N], *found.tokens[:-1]], [], sites)
    assert found.tokens == oracle.logits[0, N - 1 :].argmax(-1).tolist()
    for i, site in enumerate(sites):
        rows = captured(found, i)
        np.testing.assert_allclose(rows, oracle[site][0].numpy(), atol=3e-4, rtol=1e-4, err_msg=site)


@pytest.mark.parametrize(("family", "backend"), WAYS)
def test_attention_rows_are_the_patterns(family, backend):
    net = build(family)
    heads = tuple(range(net.config.heads))
    found = answer(net, RequestTaps(captures=(AttentionCapture((0, 2), heads, ALL),)), backend)
    oracle = traced(net, [*IDS[:N], *found.tokens[:-1]], [], ["pattern.0", "pattern.2"])
    rows = [row for one in found.captured for row in one.values]
    for query, row in enumerate(rows):
        assert row.shape == (2, len(heads), query + 1)
        for i, layer in enumerate((0, 2)):
            np.testing.assert_allclose(row[i], oracle[f"pattern.{layer}"][0, :, query, : query + 1], atol=2e-5)


def test_captures_alone_change_no_bit():
    net = build("llama")
    activations = (ActivationCapture(site, ALL) for site in ("resid_post.1", "resid_mid.0"))
    captures = (*activations, LensCapture((0,), 2, ALL))
    assert _logprobs(net, RequestTaps(captures=captures)) == _logprobs(net, None)


def _logprobs(net, taps, others: int = 0, method_name: str = "dense"):
    """Tokens and log-probabilities of an untapped request next to `others` requests with taps, or of a tapped one."""
    engine = Engine(net, method_name, None if method_name == "dense" else ROLES, page=16)
    ear, asked = Ear(), {"max_tokens": 8, "policy": engine.policy, "top_logprobs": 3}
    first = GenerationRequest(IDS[:N], taps=None if others else taps, hooks=Listeners(ear), **asked)
    beside = (GenerationRequest(IDS[5 + i : N + 5 + i], taps=taps, **asked) for i in range(others))
    drain(engine.scheduler, first, *beside)
    return ear.tokens


@pytest.mark.parametrize("kind", ["residual", "heads", "attend", "rows"])
@pytest.mark.parametrize("how", ["dense", "recycled"])
def test_neighbours_without_taps_get_the_same_bits(kind, how):
    net = build("llama")
    taps = RequestTaps(tuple(edits_of(kind)), (AttentionCapture((1,), (0,), ALL),) if kind == "heads" else ())
    beside = _logprobs(net, taps, others=2, method_name=how)
    assert beside == _logprobs(net, RequestTaps(), others=2, method_name=how)


def test_a_steered_prefix_is_never_reused_by_an_unsteered_request_nor_the_other_way_round():
    net = build("llama")
    steered = RequestTaps((PlacedEdit(Add("resid_post.0", 2 * vector()), ALL),))
    other = RequestTaps((PlacedEdit(Add("resid_post.0", 3 * vector()), ALL),))
    decoding = RequestTaps((PlacedEdit(Add("resid_post.0", 2 * vector()), DECODE),))
    engine = Engine(net, page=16)

    def ask(taps):
        found = serve(engine, Request(IDS[:N], max_tokens=5, taps=taps))
        return found.tokens, found.usage.cached_tokens

    fresh = {name: answer(net, taps).tokens for name, taps in (("plain", None), ("steered", steered), ("other", other))}
    assert (ask(steered), ask(None)) == ((fresh["steered"], 0), (fresh["plain"], 0))
    assert (ask(other), ask(steered), ask(None)) == ((fresh["other"], 0), (fresh["steered"], 64), (fresh["plain"], 64))
    assert ask(decoding)[1] == 64, "a prompt that no edit touches is like any other"
    assert ask(RequestTaps(tuple(edits_of("set"))))[1] == 0
    late = RequestTaps((PlacedEdit(Replace("resid_post.1", vector()[None, None]), TokenRange.of([40], N, 600)),))
    assert ask(late) == (answer(net, late).tokens, 32), "what lies before the first changed token is everybody's"
    assert (ask(late)[1], ask(None)) == (64, (fresh["plain"], 64))
    assert ask(RequestTaps(captures=(ActivationCapture("z.0", TokenRange(20, 21, (20,))),)))[1] == 16


def test_each_of_n_answers_is_steered_and_captures_prompt_and_answer():
    net = build("llama")
    engine = Engine(net, page=16)
    taps = RequestTaps(tuple(edits_of("residual")), (ActivationCapture("z.1", TokenRange.of([-1, N, N + 1], N, 600)),))
    collectors = [Ear(), Ear()]
    samplings = [Sampling(temperature=1.0, seed=seed) for seed in (1, 2)]
    hooks = Listeners(*collectors)
    drain(engine.scheduler, GenerationRequest(IDS[:N], samplings, 6, policy=engine.policy, taps=taps, hooks=hooks))
    for collector in collectors:
        ids = [*IDS[:N], *collector.ids[:-1]]
        oracle = traced(net, ids, edits_of("residual"), ["z.1"])
        assert [p for one in collector.captured for p in one.positions] == [N - 1, N, N + 1]
        rows = np.stack([row for one in collector.captured for row in one.values])
        np.testing.assert_allclose(rows, oracle["z.1"][0, N - 1 : N + 2], atol=2e-4, rtol=1e-4)
    assert collectors[0].ids != collectors[1].ids


@pytest.mark.parametrize("name", in_depth(methods(), methods().keys() - {*STOOD_FOR}))
def test_edits_and_rows_work_under_every_method(name):
    net, how = tiny_decoder(positions=192), trials(methods()[name])[0]
    edits = [Add("resid_post.0", 2 * vector(net.config.width)), Uniform(0, heads=[1]), Scale("z.1", 0.0, heads=[2])]
    edits += [Attend(1, [0], [], [3, 5, N + 1], [0.25, 0.5, 1.0])]
    captures = (AttentionCapture((1,), (0, 3), ALL), LensCapture((1,), 1, ALL))
    taps, plan = RequestTaps(tuple(PlacedEdit(one, ALL) for one in edits), captures), PLAN if how.needs_plan else None
    asked = (Request(IDS[:N], max_tokens=5, taps=one) for one in (taps, None))
    found = [Engine(net, how, plan, page=16).generate([one])[0] for one in asked]
    assert found[0].tokens != found[1].tokens
    rows = [row for one in found[0].captured if one.capture == 0 for row in one.values]
    assert [row.shape for row in rows] == [(1, 2, position + 1) for position in range(N + 4)]
    for row in rows:
        assert (row >= 0).all()
        assert (row.sum(-1) < 1 + 1e-4).all()
