"""Methods as others see them: measured claims, routes, and methods in one file as docs/07 shows them."""

import json
import re
import sys
from itertools import product
from pathlib import Path

import pytest

from services.llm_longctx import methods as room
from services.llm_longctx.methods import methods
from services.llm_longctx.methods.core import sparsity_claims
from services.llm_longctx.tests.method_contract import CHECKS
from shared.registry.discovery import claims as found_claims
from shared.sparsity import OPEN, blocking, lint
from tests.harness.hypothesis_profiles import in_depth

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


OWN = ("dotted", "heaviest")
SHOWN = [*product(OWN, ("check_engine", "check_facts", "check_reference")), ("dotted", "check_knobs")]
PAGE = Path(__file__).parents[3] / "docs/07-long-contexts.md"


@pytest.fixture(scope="module")
def own_methods(tmp_path_factory):
    texts = re.findall(r"^```python\n(.*?)^```", PAGE.read_text("utf8"), re.DOTALL | re.MULTILINE)
    folder = tmp_path_factory.mktemp("room")
    for name, text in zip(OWN, texts, strict=True):
        (folder / f"{name}.py").write_text(text, "utf8")
    room.__path__.append(str(folder))
    methods.cache_clear()
    yield
    room.__path__.remove(str(folder))
    for name in OWN:
        sys.modules.pop(f"{room.__name__}.{name}", None)
    methods.cache_clear()


@pytest.mark.parametrize(("name", "check"), in_depth(product(OWN, CHECKS), SHOWN))
@pytest.mark.usefixtures("own_methods")
def test_own_methods_keep_the_contract(name, check):
    CHECKS[check](methods()[name])


@pytest.mark.usefixtures("own_methods")
def test_an_own_method_is_described_served_and_refused_over_http(server):
    told = server.http.get("/v1/longctx/methods/dotted").json()
    assert told["summary"] == "Reads a window and a dotted line of the past; frees nothing."
    assert told["knobs"]["properties"]["stride"]["description"] == "One in so many older tokens is read."
    ask = {"prompt": "Once upon a time there was a mill by the river", "max_tokens": 3}
    body = ask | {"longctx": {"method": "dotted", "stride": 2, "window": 4}}
    used = server.http.post("/v1/completions", json=body).json()["usage"]["longctx"]
    assert (used["method"], used["knobs"]) == ("dotted", {"stride": 2, "window": 4})
    assert used["prefill_density"] < 1
    refused = server.http.post("/v1/completions", json=ask | {"longctx": {"method": "dotted", "stride": 0}})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "longctx.stride")
