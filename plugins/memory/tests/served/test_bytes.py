"""Byte models behind OpenAI's routes, what each layer remembers, and schemathesis over sessions and documents."""

import pytest

from plugins.memory.tests.served.conftest import metric
from shared.serving.build_app import build
from shared.settings import Settings
from tests.harness.openapi_fuzz import fuzz

BYTES = ("fovea-routing-bytes", "fovea-hybrid-nonapproximate")
TEXT = "def main() -> None:\n    print('ä')\n"


@pytest.mark.parametrize("model", BYTES)
def test_context_is_the_limit_of_what_it_reads_and_says(http, adapter, model):
    context = adapter(model).context
    answer = http.post("/v1/completions", json={"model": model, "prompt": "x" * (context - 2), "max_tokens": 50})
    assert answer.json()["usage"]["completion_tokens"] == 2
    answer = http.post("/v1/completions", json={"model": model, "prompt": "x" * (context + 1)})
    assert answer.json()["error"]["code"] == "context_length_exceeded"


def test_hybrid_shows_its_layers_beside_the_dense_twin(http):
    card = http.get("/v1/models/fovea-hybrid-nonapproximate").json()["details"]
    assert card["layout"] == ["nonapproximate", "standard"] * 2
    assert card["cache_bytes"][0] < card["cache_bytes"][1] / 100
    assert card["cache_bytes_per_token_total"] < 0.51 * card["dense_twin"]["cache_bytes_per_token_total"]


def test_states_and_clusters_are_measured(http):
    for model in BYTES:
        http.post("/v1/completions", json={"model": model, "prompt": TEXT, "max_tokens": 4})
    lines = [x for x in http.get("/metrics").text.splitlines() if x.startswith("mixer_state_bytes{")]
    held = {line.partition('variant="')[2].partition('"')[0]: float(line.rpartition(" ")[2]) for line in lines}
    assert 0 < held["nonapproximate"] < held["standard"]
    assert metric(http, "routing_cluster_occupancy") > 0
    assert 0 < metric(http, "routing_alone_ratio") <= 1


@pytest.mark.parametrize("model", ["fovea-routing-bytes", "fovea-landmark-recall"])
def test_a_sparse_model_tells_its_claim_and_what_it_still_owes(http, model):
    told = http.get(f"/v1/models/{model}/sparsity").json()
    assert told["claim"] == http.get(f"/v1/models/{model}").json()["sparsity"]
    assert told["claim"]["counted_in"] == "artefact"
    assert told["claim"]["measured"]["runs"] >= 30
    assert {finding["rule"] for finding in told["findings"]} <= {"S7", "S10"}
    assert http.get("/v1/models/fovea-titans-mac/sparsity").status_code == 404


def change(body):
    """Without a model of its own, or nearly every request would stop at an unknown one."""
    return body | {"model": None} if isinstance(body, dict) and "model" in body else body


def test_no_request_that_the_document_allows_is_a_server_error(mixers):
    app = build("llm-longctx", servables={}, settings=Settings())
    fuzz(app.openapi(), mixers.url, 3, "/v1/sessions", "/v1/documents", change=change)
