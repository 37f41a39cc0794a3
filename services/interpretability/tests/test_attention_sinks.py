"""Attention sinks: the rule against golden patterns, its properties, and the report."""

import numpy as np
import pytest

from services.interpretability.experiments import attention_sinks
from services.interpretability.tests.conftest import WEIGHTS, read
from shared.registry import CallContext
from tests.golden import read_golden

FACTS = read("attention_sinks.json")["models"]


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("threshold", ["0.05", "0.1", "0.2"])
def test_sinks_equal_the_golden_ones(family, threshold):
    facts = FACTS[family]
    patterns = read_golden(WEIGHTS / f"tiny_{family}_attention.arrays")
    found = [attention_sinks.sinks(patterns[f"layer{layer}"], float(threshold)) for layer in range(3)]
    assert found == facts["sinks[threshold][layer][head]"][threshold]


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_column_means_equal_the_golden_ones(family):
    patterns = read_golden(WEIGHTS / f"tiny_{family}_attention.arrays")
    found = [attention_sinks.column_mass(patterns[f"layer{layer}"]) for layer in range(3)]
    assert np.abs(np.array(found) - FACTS[family]["column_means"]).max() < 1e-6


def _random_pattern(*shape: int) -> np.ndarray:
    scores = np.random.default_rng(0).standard_normal(shape)
    scores[..., ~np.tri(shape[-1], dtype=bool)] = -np.inf
    rows = np.exp(scores - scores.max(-1, keepdims=True))
    return rows / rows.sum(-1, keepdims=True)


def test_tail_hides_the_last_positions_only():
    pattern = _random_pattern(4, 18, 18)
    assert [[j for j in head if j < 13] for head in attention_sinks.sinks(pattern)] == attention_sinks.sinks(
        pattern, tail=5
    )


def test_cached_columns_are_divided_by_all_queries():
    whole = _random_pattern(2, 12, 12)
    tail = whole[:, 7:]
    assert np.allclose(attention_sinks.column_mass(tail)[:, :7], tail.sum(1)[:, :7] / 5)
    assert np.allclose(attention_sinks.column_mass(tail)[:, 7:], attention_sinks.column_mass(whole)[:, 7:])


def test_masses_in_blocks_equal_those_of_the_whole_pattern(tiny):
    from shared.lm.taps import trace

    ids = tiny.encode("a" * 40 + "bcd" * 60 + "the end of it")
    whole = trace(tiny.model, tiny.tensor([ids]), capture=[f"pattern.{l}" for l in range(tiny.layers)])
    expected = np.stack([attention_sinks.column_mass(whole[f"pattern.{l}"][0]).numpy() for l in range(tiny.layers)])
    assert np.abs(attention_sinks.column_masses(tiny, ids) - expected).max() < 1e-6


def test_hiding_a_position_from_no_head_of_a_layer_changes_only_what_it_says(context):
    spec = attention_sinks.SinksSpec(lm="tiny", text="the reeds wait for the wind", remove=0, heads=[[2, 1]])
    (report,) = attention_sinks.AttentionSinks.load(context).predict([spec], CallContext())
    found = {name: scalar.value for name, scalar in report.scalars.items()}
    assert found["nll_change"] == pytest.approx(found["nll_without"] - found["nll"]) != 0
