"""Claims of sparsity are linted: every rule finds its own offence and no other."""

import json
import pathlib

import pytest

from shared.sparsity import SparsityClaim, blocking, lint

CLAIMS = json.loads((pathlib.Path(__file__).parent / "golden/sparsity_claims.json").read_text("utf8"))
GOOD = [case["claim"] for case in CLAIMS if not case["expect"]]


@pytest.mark.parametrize("case", CLAIMS, ids=lambda case: case["name"])
def test_exactly_the_expected_rules_are_found(case):
    assert {finding.rule for finding in lint(case["claim"])} == set(case["expect"])


def test_rules_are_independent_and_an_invalid_record_is_the_only_finding():
    broken = dict(GOOD[2], kind="attention", when=None, phases=None, retrieval=None, quality=None, counted_in="config")
    assert [finding.rule for finding in lint(broken)] == ["S2", "S3", "S7", "S8", "S10"]
    [finding] = lint(dict(GOOD[0], sparsity_global=1.4, kind=None))
    assert finding.rule == "S0"
    assert "sparsity_global" in finding.message
    for speedup in (1.65, float("nan")):
        assert [f.rule for f in lint(dict(GOOD[1], headline={**GOOD[1]["headline"], "speedup": speedup}))] == ["S4"]


@pytest.mark.parametrize(("headline", "blocks"), [(None, []), ({"scope": "decode"}, ["S7", "S10"])])
def test_missing_studies_block_a_headline_and_nothing_else(headline, blocks):
    attention = next(claim for claim in GOOD if claim["kind"] == "attention" and claim["measured"])
    if headline is not None:
        headline = {"speedup": attention["measured"]["speedup"], "source": "measured", **headline}
        attention = dict(attention, phases={"prefill": "sparse", "decode": "sparse", "training": "dense"})
    claim = dict(attention, quality=None, retrieval=None, headline=headline)
    assert [finding.rule for finding in lint(claim)] == ["S7", "S10"]
    assert [finding.rule for finding in blocking(claim)] == blocks
    assert blocking(SparsityClaim.model_validate(claim)) == blocking(claim)
