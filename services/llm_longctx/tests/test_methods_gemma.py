"""Methods on a model whose layers slide: they act on global layers, and sliding layers hold their window only."""

import pytest
import torch

from services.llm_longctx.engine import Engine
from services.llm_longctx.methods import method
from shared.lm.builders import gemma3

IDS = [(7 * i + i * i) % 32 for i in range(60)]
ROLES = {"schema": "head-plan/1", "roles": [[1, 0]] * 3, "heads": [[2, 1]]}


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    made = gemma3(
        vocab=32, width=16, layers=3, heads=4, kv_heads=2, hidden=24, positions=128, head_dim=8, window=9, every=3
    ).double()
    for parameter in made.parameters():
        parameter.data = 0.5 * torch.randn_like(parameter)
    return made.eval().requires_grad_(requires_grad=False)


def run(model, how, chunks=None):
    engine = Engine(model, how, ROLES, page=4)
    sequence = engine.open()
    read = sequence.prefill(IDS[:50], chunks)
    steps = torch.stack([sequence.step(token) for token in IDS[50:]])
    held = [[len(sequence.entries(layer, g).positions) for g in range(2)] for layer in range(3)]
    sequence.close()
    assert engine.kv_bytes() == 0
    return torch.cat((read, steps)), held


@pytest.mark.parametrize("chunks", [None, [16, 16, 18], [1, 49]])
def test_the_engine_is_the_decoder(model, chunks):
    logits, held = run(model, "dense", chunks)
    torch.testing.assert_close(logits, model(torch.tensor([IDS]))[0], atol=1e-10, rtol=0)
    assert held[2] == [60, 60]
    assert max(held[0] + held[1]) <= 9


def test_duo_cuts_global_layers_only(model):
    logits, held = run(model, method("duo", sink=2, recent=6))
    assert held[2] == [60, 8]
    assert torch.isfinite(logits).all()
