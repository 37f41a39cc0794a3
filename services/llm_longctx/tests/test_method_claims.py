"""Every sparse method claims what was measured of it, and the routes tell methods, knobs and claims."""

import json

import pytest

from services.llm_longctx.methods import methods
from services.llm_longctx.methods.core import sparsity_claims
from shared.registry.discovery import claims as found_claims
from shared.sparsity import OPEN, blocking, lint

SPARSE = sorted(set(methods()) - {"dense", "act", "kvzap", "triattention"})


@pytest.mark.parametrize("name", SPARSE)
def test_a_sparse_method_claims_what_the_bench_measured(name):
    claim, facts = methods()[name].sparsity, json.loads(sparsity_claims.MEASURED.read_text())[name]
    assert found_claims()[f"longctx/{name}"] == claim
    assert claim.measured.model_dump(exclude_none=True) == facts["measured"]
    assert (claim.sparsity_by_layer, len(claim.sparsity_by_layer)) == (facts["sparsity_by_layer"], 30)
    assert claim.measured.kernel_sparse
    assert len(set(claim.retrieval.depths)) >= 3
    assert not blocking(claim)
    assert {finding.rule for finding in lint(claim)} <= OPEN


def test_phases_of_a_claim_are_phases_of_the_method():
    for kind in methods().values():
        if kind.sparsity is not None:
            forms = kind.sparsity.phases.model_dump()
            assert {phase for phase, form in forms.items() if form == "sparse"} <= kind.phases
    assert methods()["dense"].sparsity is methods()["act"].sparsity is None


def test_what_was_not_measured_is_owed_and_blocks():
    claim = sparsity_claims.build_method_claim("unheard-of", granularity="block", mask="static", prefill="sparse")
    assert claim.measured is None
    assert [finding.rule for finding in blocking(claim)] == ["S3"]
    assert {"S7", "S10"} <= {finding.rule for finding in lint(claim)}


def test_methods_and_their_claims_are_told_over_http(server):
    http = server.http
    told = {one["name"]: one for one in http.get("/v1/longctx/methods").json()}
    assert (set(told), told["duo"]["knobs"]["properties"]["sink"]["default"]) == (set(methods()), 64)
    assert told["dense"]["sparsity"] is None
    assert http.get("/v1/longctx/methods/power").json() == told["power"]
    claim = http.get("/v1/longctx/methods/duo/sparsity").json()
    assert claim == told["duo"]["sparsity"]
    assert claim["claim"]["phases"] == {"prefill": "dense", "decode": "sparse", "training": "dense"}
    assert http.get("/v1/longctx/methods/dense/sparsity").status_code == 404
    assert "known are act" in http.get("/v1/longctx/methods/none").text
