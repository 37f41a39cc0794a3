"""The decoder and its taps against numbers computed by an independent implementation."""

from pathlib import Path

import numpy as np
import pytest
import torch

from shared.lm.taps import Attend, Replace, Scale, Uniform, sweep, trace
from tests.golden import read_golden

GOLDEN = Path(__file__).parent / "golden"
LAYERS, HEADS = range(3), range(4)


def test_logits_and_captures_at_the_last_position_are_golden(golden):
    for name in ("clean", "corrupt"):
        last = trace(golden.model, getattr(golden, name)).logits[:, -1]
        torch.testing.assert_close(last, torch.tensor(golden.facts[f"{name}_last_logits"]), atol=1e-4, rtol=0)
    for name, known in golden.facts["taps_row0_last"].items():
        site, _, head = name.partition(" head ")
        seen = trace(golden.model, golden.clean, capture=[site])[site][0, -1]
        seen = seen[int(head)] if head else seen
        torch.testing.assert_close(seen, torch.tensor(known), atol=1e-4, rtol=0)


def test_patterns_of_the_repeated_sequence_are_golden(golden):
    ids = torch.tensor([golden.facts["repeated_ids"]])
    seen = trace(golden.model, ids, capture=[f"pattern.{layer}" for layer in LAYERS])
    known = read_golden(GOLDEN / f"tiny_{golden.family}_attention.arrays")
    for layer in LAYERS:
        np.testing.assert_allclose(seen[f"pattern.{layer}"][0].numpy(), known[f"layer{layer}"], atol=1e-5)


def test_overridden_rows_and_uniform_masking_are_golden(golden):
    for case in golden.facts["attention_override"]:
        edit = Attend(case["layer"], case["head"], case["query"], case["keys"], case["weights"])
        logits = trace(golden.model, golden.clean, edits=[edit]).logits
        assert golden.logit_diff(logits) == pytest.approx(case["logit_diff"], abs=1e-4)
        torch.testing.assert_close(logits[0, -1], torch.tensor(case["last_logits_row0"]), atol=1e-4, rtol=0)
    for case in golden.facts["uniform_at_positions"]:
        edit = Uniform(case["layer"], case["head"], case["positions"])
        logits = trace(golden.model, golden.clean, edits=[edit]).logits
        assert golden.logit_diff(logits) == pytest.approx(case["logit_diff"], abs=1e-4)


def check_sweep(golden, edits, known):
    """The logit difference under each edit alone."""
    found = [golden.logit_diff(t.logits) for t in sweep(golden.model, golden.clean, [[one] for one in edits], batch=5)]
    np.testing.assert_allclose(found, np.ravel(known), atol=1e-4)


@pytest.mark.parametrize("name", ["zero_ablation_logit_diff", "uniform_attention_ablation_logit_diff"])
def test_ablation_of_each_head_is_golden(golden, name):
    make = Uniform if name.startswith("uniform") else lambda layer, head: Scale(f"z.{layer}", 0.0, head)
    check_sweep(golden, [make(layer, head) for layer in LAYERS for head in HEADS], golden.facts[name])


@pytest.mark.parametrize(("site", "position"), [("q", None), ("k", None), ("v", None), ("z", None), ("z", -1)])
def test_patching_is_golden(golden, site, position):
    facts, where = golden.facts, "all" if position is None else "-1"
    patched = facts["activation_patching_logit_diff"] | {"z": facts["activation_patching_z_logit_diff"][where]}
    known = patched[site]
    corrupt = trace(golden.model, golden.corrupt, capture=[f"{site}.{layer}" for layer in LAYERS])
    edits = [
        Replace(name, value, heads=head, positions=position)
        for name, value in corrupt.items()
        for head in range(len(known[0]))
    ]
    check_sweep(golden, edits, known)
