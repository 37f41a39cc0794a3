"""The decoder and its taps against numbers computed by an independent implementation."""

from pathlib import Path

import numpy as np
import pytest
import torch

from shared.lm.taps import Attend, Replace, Scale, Uniform, sweep, trace
from tests.golden import read_golden

GOLDEN = Path(__file__).parent / "golden"
LAYERS, HEADS = range(3), range(4)


def test_last_logits_are_golden(golden):
    for ids, known in (
        (golden.clean, golden.facts["clean_last_logits"]),
        (golden.corrupt, golden.facts["corrupt_last_logits"]),
    ):
        torch.testing.assert_close(trace(golden.model, ids).logits[:, -1], torch.tensor(known), atol=1e-4, rtol=0)


def test_patterns_of_the_repeated_sequence_are_golden(golden):
    ids = torch.tensor([golden.facts["repeated_ids"]])
    seen = trace(golden.model, ids, capture=[f"pattern.{layer}" for layer in LAYERS])
    known = read_golden(GOLDEN / f"tiny_{golden.family}_attention.arrays")
    for layer in LAYERS:
        np.testing.assert_allclose(seen[f"pattern.{layer}"][0].numpy(), known[f"layer{layer}"], atol=1e-5)


def test_captures_at_the_last_position_are_golden(golden):
    for name, known in golden.facts["taps_row0_last"].items():
        site, _, head = name.partition(" head ")
        seen = trace(golden.model, golden.clean, capture=[site])[site][0, -1]
        seen = seen[int(head)] if head else seen
        torch.testing.assert_close(seen, torch.tensor(known), atol=1e-4, rtol=0)


def test_an_overridden_pattern_row_is_golden(golden):
    for case in golden.facts["attention_override"]:
        edit = Attend(case["layer"], case["head"], case["query"], case["keys"], case["weights"])
        logits = trace(golden.model, golden.clean, edits=[edit]).logits
        assert golden.logit_diff(logits) == pytest.approx(case["logit_diff"], abs=1e-4)
        torch.testing.assert_close(logits[0, -1], torch.tensor(case["last_logits_row0"]), atol=1e-4, rtol=0)


def test_uniform_masking_at_some_positions_is_golden(golden):
    for case in golden.facts["uniform_at_positions"]:
        edit = Uniform(case["layer"], case["head"], case["positions"])
        logits = trace(golden.model, golden.clean, edits=[edit]).logits
        assert golden.logit_diff(logits) == pytest.approx(case["logit_diff"], abs=1e-4)


@pytest.mark.parametrize("name", ["zero_ablation_logit_diff", "uniform_attention_ablation_logit_diff"])
def test_ablation_of_each_head_is_golden(golden, name):
    def edit(layer, head):
        return Scale(f"z.{layer}", 0.0, head) if name.startswith("zero") else Uniform(layer, head)

    variants = [[edit(layer, head)] for layer in LAYERS for head in HEADS]
    found = [golden.logit_diff(t.logits) for t in sweep(golden.model, golden.clean, variants, batch=5)]
    np.testing.assert_allclose(found, np.ravel(golden.facts[name]), atol=1e-4)


@pytest.mark.parametrize("letter", ["q", "k", "v"])
def test_patching_projections_is_golden(golden, letter):
    known = golden.facts["activation_patching_logit_diff"][letter]
    corrupt = trace(golden.model, golden.corrupt, capture=[f"{letter}.{layer}" for layer in LAYERS])
    variants = [
        [Replace(f"{letter}.{layer}", corrupt[f"{letter}.{layer}"], heads=head)]
        for layer in LAYERS
        for head in range(len(known[0]))
    ]
    found = [golden.logit_diff(t.logits) for t in sweep(golden.model, golden.clean, variants)]
    np.testing.assert_allclose(found, np.ravel(known), atol=1e-4)


@pytest.mark.parametrize("position", ["all", "-1"])
def test_patching_mixed_values_is_golden(golden, position):
    known = golden.facts["activation_patching_z_logit_diff"][position]
    corrupt = trace(golden.model, golden.corrupt, capture=[f"z.{layer}" for layer in LAYERS])
    where = None if position == "all" else -1
    variants = [
        [Replace(f"z.{layer}", corrupt[f"z.{layer}"], heads=head, positions=where)]
        for layer in LAYERS
        for head in HEADS
    ]
    found = [golden.logit_diff(t.logits) for t in sweep(golden.model, golden.clean, variants)]
    np.testing.assert_allclose(found, np.ravel(known), atol=1e-4)
