"""The language engine on a pretended device: every method, cache and tap, one prefill and four steps, as on a CPU."""

import contextlib
import copy
from functools import cache

import pytest
import torch

from services.llm_longctx.engine import Engine
from services.llm_longctx.methods import method, methods
from shared.lm.builders import llama
from tests.device.paths import BITS, knobs_of, waits
from tests.device.pretend_cuda import PretendCuda, to_cuda

IDS = [(7 * i + i * i) % 61 for i in range(80)]
PROMPT, STEPS = 53, 4
PLAN = {
    "schema": "head-plan/1", "roles": [[1, 0], [0, 1]], "heads": [[0, 1], [1, 2]],
    "scores": {"duo_gate": [[0.9, 0.1], [0.2, 0.8]]},
}  # fmt: skip


@cache
def net():
    torch.manual_seed(1)
    sizes = {"vocab": 61, "width": 32, "layers": 2, "heads": 4, "kv_heads": 2, "hidden": 56, "positions": 96}
    made = llama(**sizes, head_dim=16).eval().requires_grad_(requires_grad=False)
    for parameter in made.parameters():
        parameter.copy_(parameter + 0.2 * torch.randn_like(parameter) / parameter.shape[-1] ** 0.25)
    return made


def on_cuda(device: PretendCuda):
    return to_cuda(copy.deepcopy(net()), device)


CASES = [(name, i) for name in sorted(methods()) for i in range(len(knobs_of(name)))]


def play(model, how, bits, device: PretendCuda | None = None) -> torch.Tensor:
    engine = Engine(model, how, PLAN, page=16, backend="cpu_torch", cache_bits=bits, kv_bytes=1 << 20)
    s = engine.open()
    rows = [s.prefill(IDS[:PROMPT])[-1]]
    for i in range(STEPS):
        with contextlib.nullcontext() if device is None or waits(how, i + 1) else device.decoding():
            rows.append(s.step(IDS[PROMPT + i]))
    s.close()
    return torch.stack(rows)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize(("name", "which"), CASES)
def test_every_method_runs_as_on_a_cpu(name, which, bits):
    how = method(name, **knobs_of(name)[which])
    wanted = play(net(), how, bits)
    device = PretendCuda()
    with device.active():
        found = play(on_cuda(device), how, bits, device)
        assert found.device.type == "cuda"
        close = torch.allclose(found.cpu(), wanted, atol=2e-4)
    assert close
