"""Folders that transformers has saved: every method with its knobs wide open gives transformers' logits in fp32."""

from functools import cache
from pathlib import Path

import pytest
import torch

from fovea.errors import InvalidOption
from services.llm_longctx.engine import Engine
from services.llm_longctx.methods import method, methods
from services.llm_longctx.serving.weight_format import load_weights
from shared.lm.tests.test_lm_parity import ids, theirs

PROMPT, ALL = 48, 60
LAYERS, KV_HEADS, WIDTH = 3, 2, 48
GATES = {"weight": [[0.01 * i for i in range(WIDTH)]] * KV_HEADS, "bias": [0.0] * KV_HEADS}
OPEN = {
    "act": {"beta": 1.0}, "dense": {}, "dhsa": {"budget": 256}, "duo": {"sink": 64, "recent": 64},
    "flexprefill": {"block": 8, "min_budget": 64}, "kvzap": {"ratio": 1.0, "surrogates": (GATES,) * LAYERS},
    "power": {"block": 8, "window": 8}, "razor": {"window_min": 64}, "recycled": {"budget": 64, "stride": 4},
}  # fmt: skip
"""Knobs under which a method reads and keeps everything; evictions that are not named here keep it with ratio 1."""

PLAN = {"schema": "head-plan/1", "roles": [[1, 0]] * LAYERS, "heads": [[2, 1]]}


@cache
def official(family: str, root: Path):
    """A saved folder, loaded as it is served, and the official model's logits [T,V]."""
    model, text = theirs(family), ids(1, ALL)
    model.save_pretrained(root / family)
    with torch.no_grad():
        return load_weights(root / family, root / "cache", "auto"), text[0].tolist(), model(text).logits[0]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("folders")


CASES = [(family, name) for family in ("llama", "qwen2", "qwen3", "gemma3") for name in methods()]


@pytest.mark.parametrize(("family", "name"), CASES)
def test_a_folder_is_served_as_transformers_runs_it(family, name, root):
    weights, text, known = official(family, root)
    assert weights.format == "fp32"
    how = method(name, **OPEN.get(name, {"ratio": 1.0, "budget": None}))
    if (family, name) == ("gemma3", "kvzip"):  # its replay needs layers that hold the whole prompt
        with pytest.raises(InvalidOption, match="window"):
            Engine(weights.model, how)
        return
    sequence = Engine(weights.model, how, PLAN if how.needs_plan else None, page=16).open()
    found = [sequence.prefill(text[:PROMPT]), *(sequence.step(token)[None] for token in text[PROMPT:])]
    torch.testing.assert_close(torch.cat(found), known, atol=2e-4, rtol=1e-4)
