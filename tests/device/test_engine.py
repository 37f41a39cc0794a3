"""The language engine on a pretended device: every method, cache and tap, one prefill and four steps, as on a CPU."""

import contextlib
import copy
from functools import cache

import pytest
import torch

from services.llm_longctx.engine import Engine
from services.llm_longctx.engine.device.graph_steps import GraphSteps
from services.llm_longctx.methods import method, methods
from services.llm_longctx.tests.method_contract.oracle import PLAN
from services.llm_longctx.tests.tiny_models import random_adapter, random_decoder
from shared.lm.builders import llama
from shared.lm.lora import LoraAdapter
from tests.device.paths import FEW_BITS, is_recorded, knobs_of, waits
from tests.device.pretend_cuda import PretendCuda, to_cuda
from tests.device.stand_in_graph import PlainRecorder
from tests.harness.hypothesis_profiles import in_depth

IDS = [(7 * i + i * i) % 61 for i in range(80)]
PROMPT, STEPS = 53, 4


@cache
def net():
    sizes = {"vocab": 61, "width": 32, "layers": 2, "heads": 4, "kv_heads": 2, "hidden": 56, "positions": 96}
    return random_decoder(lambda: llama(**sizes, head_dim=16), 0.2)


def on_cuda(device: PretendCuda):
    return to_cuda(copy.deepcopy(net()), device)


CASES = [(name, i, 16) for name in sorted(methods()) for i in range(len(knobs_of(name)))]
CASES += [(name, 0, bits) for name in sorted(methods()) for bits in FEW_BITS]
"""Methods with all their knobs on a full cache, and with the first ones on caches of few bits."""

FEW = {"dense", "duo", "snapkv", "recycled", "act"}
ALWAYS = {case for case in CASES if case[1] == 0 and (case[2] == 16 or case[0] in FEW)}


def play(model, how, bits, device: PretendCuda | None = None, recorder=None, prompt: int = PROMPT) -> torch.Tensor:
    engine = Engine(model, how, PLAN, page=16, backend="cpu_torch", cache_bits=bits, kv_bytes=1 << 20)
    if recorder is not None:
        passes = engine.runner.passes
        passes.graphs = GraphSteps(passes.run_fixed, engine.pool, recorder, "cpu_torch")
    s = engine.open()
    rows = [s.prefill(IDS[:prompt])[-1]]
    for i in range(STEPS):
        with contextlib.nullcontext() if device is None or waits(how, i + 1) else device.decoding():
            rows.append(s.step(IDS[prompt + i]))
    s.close()
    return torch.stack(rows)


@cache
def plain(name: str, which: int, bits: int) -> torch.Tensor:
    """Logits of a CPU."""
    return play(net(), method(name, **knobs_of(name)[which]), bits)


@pytest.mark.parametrize(("name", "which", "bits"), in_depth(CASES, ALWAYS))
def test_every_method_runs_as_on_a_cpu(name, which, bits):
    """Methods whose steps are not recorded, with a recorder; for others see `test_graph_steps.py`."""
    how, wanted, device = method(name, **knobs_of(name)[which]), plain(name, which, bits), PretendCuda()
    recorder = None if is_recorded(how) else PlainRecorder()
    with device.active():
        found = play(on_cuda(device), how, bits, device, recorder)
        assert found.device.type == "cuda"
        close = torch.allclose(found.cpu(), wanted, atol=2e-4)
    assert close
    assert recorder is None or not recorder.records


def adapter(model, rank: int) -> LoraAdapter:
    places = ("self_attn.k_proj", "mlp.gate_proj", "mlp.down_proj")
    return random_adapter(model, dict.fromkeys(places, rank), rank, str(rank))
