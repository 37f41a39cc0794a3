"""LoRA adapters in the engine: each request is the merged model, next to others and under every method."""

import copy
from functools import cache

import pytest
import torch

from fovea.errors import InvalidOption
from services.llm_longctx.engine import Engine, GenerationRequest, Request
from services.llm_longctx.engine.device.parallel_backend import check_divisible
from services.llm_longctx.engine.taps import ActivationCapture, PlacedEdit, RequestTaps
from services.llm_longctx.methods import methods
from services.llm_longctx.tests.conftest import Ear, native
from services.llm_longctx.tests.hooks import Listeners, drain
from services.llm_longctx.tests.method_contract.oracle import PLAN, trials
from services.llm_longctx.tests.test_decode_step import IDS, ROLES, build, round_matrices
from services.llm_longctx.tests.test_fidelity import compare
from services.llm_longctx.tests.test_request_taps import ALL, BACKENDS, N, captured, traced, vector
from services.llm_longctx.tests.tiny_models import random_adapter, tiny_decoder
from shared.lm.interventions import Add
from shared.lm.lora import PLACES, LoraAdapter

FAMILIES = ["llama", "biases", "qwen3", "gemma3"]


@cache
def net_of(family: str):
    return tiny_decoder(positions=192) if family == "tiny" else build(family)


@cache
def adapter_of(family: str, seed: int = 0) -> LoraAdapter:
    """A random adapter on all seven places, or on three for odd seeds, whose ranks differ."""
    places = PLACES[1::2] if seed % 2 else PLACES
    ranks = {place: 1 + (3 * i + seed) % 5 for i, place in enumerate(places)}
    return random_adapter(net_of(family), ranks, seed, f"{family}-{seed}")


@cache
def merged(family: str, seed: int = 0):
    """The model with the adapter in its matrices."""
    net, whole = net_of(family), copy.deepcopy(net_of(family))
    for layer, mine in zip(net.modules(), whole.modules(), strict=True):
        if (part := adapter_of(family, seed).parts.get(layer)) is not None:
            mine.weight.data = part.merge(mine.weight)
    return whole


def read_and_step(net, how="dense", adapter=None, backend="auto", steps=5, plan=None, ids=IDS):
    one = Engine(net, how, plan, page=16, backend=backend).open(adapter=adapter)
    rows = [one.prefill(ids[:N])[-1:], *(one.step(ids[N + i])[None] for i in range(steps))]
    held = [len(one.entries(layer, g).positions) for layer in range(net.config.layers) for g in range(2)]
    one.close()
    return torch.cat(rows), held


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_an_adapted_sequence_is_the_merged_model(family, backend):
    found, _ = read_and_step(net_of(family), adapter=adapter_of(family), backend=backend)
    known, _ = read_and_step(merged(family), backend=backend)
    torch.testing.assert_close(found, known, atol=2e-4, rtol=1e-4)
    assert (found - read_and_step(net_of(family), backend=backend)[0]).abs().max() > 0.1


@pytest.mark.parametrize("name", methods())
def test_every_method_serves_an_adapter_as_the_merged_model(name):
    how = trials(methods()[name])[0]
    plan = PLAN if how.needs_plan else None
    ids = [37 * i % 251 for i in range(N + 5)]  # no token comes twice: keys of the first layer would be ties
    found, held = read_and_step(net_of("tiny"), how, adapter_of("tiny"), plan=plan, ids=ids)
    known, kept = read_and_step(merged("tiny"), how, plan=plan, ids=ids)
    torch.testing.assert_close(found, known, atol=5e-4, rtol=1e-4)
    assert held == kept


def scores(engine: Engine, adapters) -> list:
    """Tokens and log-probabilities of requests that decode in one batch."""
    ears, requests = [Ear() for _ in adapters], []
    for i, (adapter, ear) in enumerate(zip(adapters, ears, strict=True)):
        facts = {"max_tokens": 6, "policy": engine.policy, "top_logprobs": 3, "adapter": adapter}
        requests.append(GenerationRequest(IDS[i : N + i], hooks=Listeners(ear), **facts))
    batches, decode = [], engine.runner.decode
    engine.runner.decode = lambda states, *more: batches.append(len(states)) or decode(states, *more)
    drain(engine.scheduler, *requests)
    assert max(batches) == len(adapters)
    return [ear.tokens for ear in ears]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("family", "how"), [("llama", "dense"), ("llama", "recycled"), ("gemma3", "streamingllm")])
def test_one_step_has_different_adapters_and_none_and_neighbours_get_the_same_bits(family, how, backend):
    def engine():
        return Engine(net_of(family), how, None if how == "dense" else ROLES, page=16, backend=backend)

    one, two = adapter_of(family), adapter_of(family, 1)
    mixed, plain = scores(engine(), [None, one, two, None]), scores(engine(), [None] * 4)
    assert (mixed[0], mixed[3]) == (plain[0], plain[3])
    alone = scores(engine(), [None, one, None, None])[1], scores(engine(), [None, None, two, None])[2]
    assert (mixed[1], mixed[2]) == alone
    assert mixed[1] != plain[1]
    assert [token.id for token in mixed[2]] != [token.id for token in plain[2]]


@pytest.mark.parametrize("backend", BACKENDS)
def test_steering_and_captures_see_the_adapted_model(backend):
    edits = [PlacedEdit(Add("resid_post.1", 2 * vector()), ALL)]
    taps = RequestTaps(tuple(edits), (ActivationCapture("q.2", ALL), ActivationCapture("mlp_out.1", ALL)))
    engine = Engine(net_of("llama"), page=16, backend=backend)
    (found,) = engine.generate([Request(IDS[:N], max_tokens=5, taps=taps, adapter=adapter_of("llama"))])
    oracle = traced(merged("llama"), [*IDS[:N], *found.tokens[:-1]], edits, ["q.2", "mlp_out.1"])
    assert found.tokens == oracle.logits[0, N - 1 :].argmax(-1).tolist()
    for i, site in enumerate(("q.2", "mlp_out.1")):
        torch.testing.assert_close(torch.from_numpy(captured(found, i)), oracle[site][0], atol=5e-4, rtol=1e-3)


@native
@pytest.mark.parametrize("bits", [4, 8])
def test_an_adapter_works_next_to_packed_matrices(bits):
    net = build("llama")
    packed = round_matrices(net, bits)
    whole, parts = copy.deepcopy(net), {}
    for theirs, layer, mine in zip(net_of("llama").modules(), net.modules(), whole.modules(), strict=True):
        if (part := adapter_of("llama").parts.get(theirs)) is not None:
            parts[layer], mine.weight.data = part, part.merge(mine.weight)

    def steps(model, adapter=None, **more):
        one = Engine(model, page=16, **more).open(adapter=adapter)
        one.prefill(IDS[:300])
        return torch.stack([one.step(IDS[300 + i]) for i in range(4)])

    ours, exact = steps(net, LoraAdapter("", parts), packed=packed), steps(whole, backend="cpu_torch")
    assert 0 < (ours - exact).norm() <= 0.03 * exact.norm()  # rows of x are rounded to 8 bits


def test_an_answer_is_compared_with_dense_under_its_adapter_and_several_processes_refuse_it():
    engine, whole = (Engine(net, page=16) for net in (net_of("llama"), merged("llama")))
    found = compare(engine, IDS[:40], IDS[40:46], engine.policy, adapter_of("llama"))
    assert found.dense == pytest.approx(compare(whole, IDS[:40], IDS[40:46], whole.policy).dense, abs=1e-3)
    with pytest.raises(InvalidOption, match="adapters"):
        check_divisible(engine.policy, has_taps=True)
