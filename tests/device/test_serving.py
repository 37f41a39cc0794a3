"""Continuous batching on a pretended device: families, sampling, cached prefixes, interventions and comparisons."""

import copy
from functools import cache

import pytest
import torch

from services.llm_longctx.engine import Engine, GenerationRequest, Request, Sampling
from services.llm_longctx.engine.quality.fidelity import compare_to_dense
from services.llm_longctx.engine.taps import (
    ActivationCapture,
    AttentionCapture,
    LensCapture,
    PlacedEdit,
    RequestTaps,
    TokenRange,
)
from services.llm_longctx.tests.conftest import Ear
from services.llm_longctx.tests.hooks import Listeners
from shared.lm.builders import gemma3, gpt2, llama, qwen2
from shared.lm.interventions import Add, Attend, Scale, Uniform
from tests.device.pretend_cuda import PretendCuda, to_cuda

IDS = [(7 * i + i * i) % 61 for i in range(80)]
SMALL = {"vocab": 61, "width": 32, "layers": 2, "heads": 4, "kv_heads": 2, "hidden": 40, "positions": 120}
PLAN = {"schema": "head-plan/1", "roles": [[1, 0], [0, 1]]}
FAMILIES = {
    "llama": lambda: llama(**SMALL, head_dim=16),
    "qwen2": lambda: qwen2(**SMALL),
    "gemma3": lambda: gemma3(**SMALL, head_dim=16, window=9, every=2, query_scale=20.0),
    "gpt2": lambda: gpt2(vocab=61, width=32, layers=2, heads=4, hidden=40, positions=120),
}
N = 37


@cache
def net(family: str = "llama"):
    torch.manual_seed(1)
    made = FAMILIES[family]().eval().requires_grad_(requires_grad=False)
    for parameter in made.parameters():
        parameter.copy_(parameter + 0.3 * torch.randn_like(parameter) / parameter.shape[-1] ** 0.25)
    return made


def engine_on(device: PretendCuda | None, family: str = "llama", **facts) -> Engine:
    model = net(family) if device is None else to_cuda(copy.deepcopy(net(family)), device)
    return Engine(model, page=16, backend="cpu_torch", kv_bytes=1 << 20, **facts)


def both(run):
    """Results of a function with an engine on a CPU and on a pretended device."""
    wanted, device = run(None), PretendCuda()
    with device.active():
        found = run(device)
    return wanted, found, device


@pytest.mark.parametrize("family", FAMILIES)
def test_families_answer_alike_with_each_in_one_batch(family):
    def run(device):
        asked = [
            Request(IDS[: 20 + 9 * i], "duo" if i % 2 and family != "gpt2" else "dense", PLAN if i % 2 else None, 5)
            for i in range(4)
        ]
        if family == "gpt2":  # as many key/value heads as query heads: the plan is of another model
            asked = [Request(one.ids, "dense", None, 5) for one in asked]
        return [one.tokens for one in engine_on(device, family).generate(asked)]

    wanted, found, _ = both(run)
    assert found == wanted


KNOBS = [
    {},
    {"temperature": 1.2, "seed": 3},
    {"temperature": 0.8, "seed": 4, "top_k": 9, "top_p": 0.9, "min_p": 0.01},
    {"temperature": 1.0, "seed": 5, "presence_penalty": 0.7, "frequency_penalty": 0.4, "repetition_penalty": 1.3},
    {"temperature": 0.0, "logit_bias": {7: 30.0}},
]


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

    wanted, found, _ = both(run)
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
                engine.scheduler.add_request(request)
                while engine.scheduler.in_flight:
                    engine.scheduler.step()
                found.append(([ear.ids for ear in ears], [len(ear.prompted) for ear in ears]))
                found.append(request.stats.cached_tokens)
        engine.scheduler.close()
        return found

    wanted, found, _ = both(run)
    assert found == wanted
    assert any(isinstance(one, int) and one > 0 for one in found), "a prefix was reused"


def vector(seed: int = 0) -> torch.Tensor:
    return torch.randn(32, generator=torch.Generator().manual_seed(seed))


ALL, DECODE = TokenRange(), TokenRange(N)
EDITS = {
    "added": [PlacedEdit(Add("resid_post.1", 2 * vector()), ALL), PlacedEdit(Add("embed", vector(1)), DECODE)],
    "heads": [PlacedEdit(Scale("z.1", 0.0, heads=[1, 3]), ALL), PlacedEdit(Scale("mlp_out.0", 0.5), DECODE)],
    "queries": [PlacedEdit(Uniform(1, heads=[0]), ALL), PlacedEdit(Scale("k.1", 1.5, heads=[0]), ALL)],
    "attend": [PlacedEdit(Attend(1, [0, 2], [], [3, 5, N + 1], [0.25, 0.5, 1.0]), ALL)],
}


@pytest.mark.parametrize("kind", EDITS)
@pytest.mark.parametrize("bits", [16, 8])
def test_interventions_and_captures_are_the_same(kind, bits):
    captures = (
        ActivationCapture("resid_post.0", ALL),
        ActivationCapture("z.1", DECODE),
        AttentionCapture((1,), (0, 3), ALL),
        LensCapture((0, 1), 3, DECODE),
    )

    def run(device):
        engine = engine_on(device, cache_bits=bits)
        asked = [
            Request(IDS[:N], max_tokens=5, taps=RequestTaps(tuple(EDITS[kind]), captures)),
            Request(IDS[5:N], max_tokens=5),
        ]
        return engine.generate(asked)

    wanted, found, _ = both(run)
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
        for kind in ("added", "heads", "queries"):
            taps = RequestTaps(tuple(EDITS[kind]))
            engine.scheduler.add_request(GenerationRequest(IDS[:N], max_tokens=6, taps=taps))
        while engine.scheduler.waiting or engine.scheduler.prefilling:
            engine.scheduler.step()
        with device.decoding():
            engine.scheduler.step()
        engine.scheduler.close()


def test_comparisons_with_dense_are_the_same():
    def run(device):
        engine, results = engine_on(device), []
        policy = engine.policy_of("streamingllm")
        for _ in compare_to_dense(engine.runner, IDS[:N], IDS[N : N + 6], policy, results.append):
            pass
        return results[0]

    wanted, found, _ = both(run)
    assert (found.kl, found.top1) == (pytest.approx(wanted.kl, abs=1e-4), wanted.top1)
    assert found.dense == pytest.approx(wanted.dense, abs=1e-3)
