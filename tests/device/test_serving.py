"""Continuous batching on a pretended device: families, sampling, cached prefixes, interventions and comparisons."""

import copy
from functools import cache
from itertools import product

import pytest
import torch

from services.llm_longctx.engine import Engine, GenerationRequest, Request, Sampling
from services.llm_longctx.engine.taps import ActivationCapture, AttentionCapture, LensCapture, RequestTaps
from services.llm_longctx.tests.conftest import Ear
from services.llm_longctx.tests.hooks import Listeners, drain
from services.llm_longctx.tests.test_decode_step import IDS, ROLES, build
from services.llm_longctx.tests.test_fidelity import compare
from services.llm_longctx.tests.test_request_taps import ALL, DECODE, N, edits_of
from tests.device.pretend_cuda import PretendCuda, to_cuda
from tests.harness.hypothesis_profiles import in_depth

FAMILIES = ["llama", "qwen2", "gemma3", "gpt2"]
KINDS = ("residual", "heads", "queries", "keys", "attend")
net = cache(build)


def engine_on(device: PretendCuda | None, family: str = "llama", **facts) -> Engine:
    model = net(family) if device is None else to_cuda(copy.deepcopy(net(family)), device)
    return Engine(model, page=16, backend="cpu_torch", kv_bytes=1 << 20, **facts)


def both(run):
    """Results of a function with an engine on a CPU and on a pretended device."""
    wanted = run(None)
    with PretendCuda().active() as device:
        return wanted, run(device)


@pytest.mark.parametrize("family", FAMILIES)
def test_families_answer_alike_with_each_in_one_batch(family):
    def run(device):
        # GPT-2 has as many key/value heads as query heads: the plan is of another model.
        plans = [("dense", None), ("duo", ROLES)] if family != "gpt2" else [("dense", None)] * 2
        asked = [Request(IDS[: 20 + 9 * i], *plans[i % 2], 5) for i in range(4)]
        return [one.tokens for one in engine_on(device, family).generate(asked)]

    wanted, found = both(run)
    assert found == wanted


KNOBS = [
    {}, {"temperature": 1.2, "seed": 3}, {"temperature": 0.8, "seed": 4, "top_k": 9, "top_p": 0.9, "min_p": 0.01},
    {"temperature": 1.0, "seed": 5, "presence_penalty": 0.7, "frequency_penalty": 0.4, "repetition_penalty": 1.3},
    {"temperature": 0.0, "logit_bias": {7: 30.0}},
]  # fmt: skip


def test_every_knob_draws_the_same_tokens_with_one_read_per_step():
    def run(device):
        engine = engine_on(device)
        ears = [Ear() for _ in KNOBS]
        for i, (knobs, ear) in enumerate(zip(KNOBS, ears, strict=True)):
            how = {"top_logprobs": i % 3 or None, "hooks": Listeners(ear)}
            engine.scheduler.add_request(GenerationRequest(IDS[i : N + i], [Sampling(**knobs)], 9, **how))
        scheduler, steps = engine.scheduler, []
        while scheduler.in_flight:
            if device is None or scheduler.waiting or scheduler.prefilling or len(scheduler.running) < len(KNOBS):
                scheduler.step()
                continue
            before = device.transfers["read"], device.transfers["sent"]
            with device.decoding():
                scheduler.step()
            steps.append((device.transfers["read"] - before[0], device.transfers["sent"] - before[1]))
        scheduler.close()
        assert device is None or steps, "no step of all was seen"
        assert set(steps) <= {(1, 1)}, "a step sends its rows once and reads its tokens once"
        return [ear.tokens for ear in ears]

    wanted, found = both(run)
    assert [[t.id for t in one] for one in found] == [[t.id for t in one] for one in wanted]
    for one, other in zip(found, wanted, strict=True):
        for token, known in zip(one, other, strict=True):
            assert token.logprob == pytest.approx(known.logprob, abs=1e-4)
            assert [i for i, _ in token.top] == [i for i, _ in known.top]


def test_prefixes_forks_and_scored_prompts_are_the_same():
    def run(device):
        engine, found = engine_on(device), []
        for bits in (16, 8):
            for end in (70, 60):
                policy = engine.policy_of(cache_bits=bits)
                ears = [Ear(), Ear()]
                samplings = [Sampling(temperature=1.0, seed=i) for i in range(2)]
                scored = {"score_prompt": end == 70, "score_from": 1, "top_logprobs": 1}
                request = GenerationRequest(IDS[:end], samplings, 4, policy=policy, hooks=Listeners(*ears), **scored)
                drain(engine.scheduler, request)
                found.append(([ear.ids for ear in ears], [len(ear.prompted) for ear in ears]))
                found.append(request.stats.cached_tokens)
        engine.scheduler.close()
        return found

    wanted, found = both(run)
    assert found == wanted
    assert any(isinstance(one, int) and one > 0 for one in found), "a prefix was reused"


@pytest.mark.parametrize(("bits", "kind"), in_depth(product((16, 8), KINDS), [*product([16], KINDS), (8, "attend")]))
def test_interventions_and_captures_are_the_same(kind, bits):
    captures = (
        ActivationCapture("resid_post.0", ALL), ActivationCapture("z.1", DECODE),
        AttentionCapture((1,), (0, 3), ALL), LensCapture((0, 1), 3, DECODE),
    )  # fmt: skip

    def run(device):
        engine = engine_on(device, cache_bits=bits)
        taps = RequestTaps(tuple(edits_of(kind)), captures)
        return engine.generate([Request(IDS[:N], max_tokens=5, taps=taps), Request(IDS[5:N], max_tokens=5)])

    wanted, found = both(run)
    assert [one.tokens for one in found] == [one.tokens for one in wanted]
    assert len(found[0].captured) == len(wanted[0].captured) > 0
    for one, known in zip(found[0].captured, wanted[0].captured, strict=True):
        assert (one.capture, one.positions) == (known.capture, known.positions)
        for row, other in zip(one.values, known.values, strict=True):
            assert torch.allclose(torch.from_numpy(row), torch.from_numpy(other), atol=1e-3)


def test_interventions_in_a_step_do_not_make_the_host_wait():
    device = PretendCuda()
    with device.active():
        engine = engine_on(device)
        for kind in ("residual", "heads", "queries"):
            taps = RequestTaps(tuple(edits_of(kind)))
            engine.scheduler.add_request(GenerationRequest(IDS[:N], max_tokens=6, taps=taps))
        while engine.scheduler.waiting or engine.scheduler.prefilling:
            engine.scheduler.step()
        with device.decoding():
            engine.scheduler.step()
        engine.scheduler.close()


def test_comparisons_with_dense_are_the_same():
    def run(device):
        engine = engine_on(device)
        return compare(engine, IDS[:N], IDS[N : N + 6], engine.policy_of("streamingllm"))

    wanted, found = both(run)
    assert (found.kl, found.top1) == (pytest.approx(wanted.kl, abs=1e-4), wanted.top1)
    assert found.dense == pytest.approx(wanted.dense, abs=1e-3)
