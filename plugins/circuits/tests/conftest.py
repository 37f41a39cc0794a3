"""Tiny models with golden numbers, random models of families, and the models of the service's own tests."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from services.interpretability.tests.conftest import context, one_thread, smollm2, tiny  # noqa: F401  # fixtures
from shared.lm import builders
from shared.lm.tests.conftest import load_golden as load_model

SIZES = {"vocab": 40, "width": 24, "layers": 3, "heads": 4, "kv_heads": 2, "hidden": 32, "positions": 64}


GOLDEN = Path(__file__).parent / "golden"


def read(name: str) -> Any:
    return json.loads((GOLDEN / name).read_text())


def load_golden(family: str) -> Any:
    """A tiny model with everything that is known about it; `given` is the input of measurements."""
    known, facts = load_model(family), read(f"tiny_{family}_circuit.json")
    answers = torch.tensor(facts["answer_ids_correct_wrong"])  # correct and wrong [B,2]; prompts are [B,T]
    given = {"model": known.model, "clean": known.clean, "corrupt": known.corrupt, "answers": answers}
    return SimpleNamespace(**given, facts=facts, given=tuple(given.values()))


@pytest.fixture(scope="session", params=["gpt2", "llama"])
def golden(request):
    return load_golden(request.param)


@pytest.fixture(scope="module", params=["qwen3", "gemma3"])
def model(request):
    """A random model of the family, far from uniform; Gemma gets windows of four tokens and a layer that sees all."""
    torch.manual_seed(0)
    if request.param == "qwen3":
        made = builders.llama(**SIZES, head_dim=8, qk_norm=True)
    else:
        made = builders.gemma3(**SIZES, head_dim=8, window=4, every=2, query_scale=12.0)
    for parameter in made.parameters():
        parameter.data = 0.4 * torch.randn_like(parameter)
    return made.double().requires_grad_(requires_grad=False).eval()


@pytest.fixture(scope="module")
def family_prompts():
    """Clean and corrupt prompts for a model of a family, with their answers."""
    draw = torch.Generator().manual_seed(1)
    clean = torch.randint(0, 40, (3, 11), generator=draw)
    corrupt = clean.clone()
    corrupt[:, [2, 8]] = torch.randint(0, 40, (3, 2), generator=draw)
    return clean, corrupt, torch.randint(0, 40, (3, 2), generator=draw)
