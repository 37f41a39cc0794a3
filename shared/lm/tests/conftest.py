"""Tiny models with golden numbers, and tiny random models, for the tests of `shared.lm`."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from torch import Tensor

from shared.lm import builders
from shared.lm.config import DecoderConfig
from tests.golden import read_golden
from tests.harness.public_rule import one_thread  # noqa: F401  # fixture

GOLDEN = Path(__file__).parent / "golden"


def load_golden(family: str) -> Any:
    """A tiny model with everything that is known about it."""
    facts = json.loads((GOLDEN / f"tiny_{family}.json").read_text())
    model = getattr(builders, family)(**facts["network"]["config"]).eval()
    weights = read_golden(GOLDEN / f"tiny_{family}_weights.arrays")
    model.load_state_dict({key: torch.from_numpy(weights[key]) for key in weights}, strict=False)
    ids = ("clean_ids", "corrupt_ids", "answer_ids_correct_wrong")
    clean, corrupt, answers = (torch.tensor(facts[name]) for name in ids)

    def logit_diff(logits: Tensor) -> float:
        """Mean over prompts of correct minus wrong answer at the last position."""
        correct, wrong = logits[:, -1].gather(1, answers).unbind(1)
        return float((correct - wrong).mean())

    given = {"family": family, "model": model, "clean": clean, "corrupt": corrupt}
    return SimpleNamespace(**given, facts=facts, logit_diff=logit_diff)


def write_gguf(file: Path, arch: str, c: DecoderConfig, more: dict[str, Any], tensors: dict[str, np.ndarray], **facts):
    """As llama.cpp's converter writes it; `more` are calls of its writer, `facts` are keys with __ for full stops."""
    writer = gguf.GGUFWriter(file, arch)
    shape = {
        "block_count": c.layers, "context_length": c.positions, "embedding_length": c.width, "head_count": c.heads,
        "feed_forward_length": c.hidden, "head_count_kv": c.kv_heads, "layer_norm_rms_eps": c.norm_eps,
        "rope_freq_base": c.rope_theta,
    }  # fmt: skip
    for name, value in (shape | more).items():
        getattr(writer, f"add_{name}")(value)
    for name, value in facts.items():
        (writer.add_string if isinstance(value, str) else writer.add_float32)(name.replace("__", "."), value)
    for name, array in tensors.items():
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture(scope="session", params=["gpt2", "llama"])
def golden(request):
    return load_golden(request.param)


@pytest.fixture(scope="session")
def llama_golden():
    return load_golden("llama")
