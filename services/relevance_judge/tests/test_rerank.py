"""Reranking over HTTP in the forms of Jina, Cohere and vLLM, by each kind of scorer."""

import time

import pytest

from services.relevance_judge.routes.rerank import RerankIn, ScoreIn
from services.relevance_judge.schemas import Verdict
from services.relevance_judge.scorers import score_verdict
from services.relevance_judge.tests.conftest import serve_judges
from shared.lm.bundled_models import MINILM
from shared.lm.embedder import SentenceEmbedder
from shared.registry.discovery import servables
from tests.peer_fields import PEERS, find_fate

QUERY = "what causes ocean tides"
DOCUMENTS = ["Bread is baked from flour.", "The moon's gravity causes tides in the ocean.", "Tides rise twice a day."]


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    kinds = {"query-likelihood": servables("relevance-judge")["query-likelihood"]}
    with serve_judges(tmp_path_factory.mktemp("data"), kinds, judge_base_url="http://127.0.0.1:9") as made:
        yield made


@pytest.mark.parametrize("model", ["bm25", MINILM])
@pytest.mark.parametrize("path", ["/v1/rerank", "/v2/rerank", "/rerank"])
def test_the_most_relevant_document_comes_first(client, model, path):
    body = {"model": model, "query": QUERY, "documents": [DOCUMENTS[0], {"text": DOCUMENTS[1]}, DOCUMENTS[2]]}
    answer = client.post(path, json=body).json()
    assert [one["index"] for one in answer["results"]] == [1, 2, 0]
    assert all(0 <= one["relevance_score"] <= 1 for one in answer["results"])
    assert "document" not in answer["results"][0]
    assert (answer["model"], answer["usage"]["total_tokens"] > 0) == (model, model == MINILM)
    two = client.post(path, json=body | {"top_n": 2, "return_documents": True}).json()["results"]
    assert [one["document"]["text"] for one in two] == [DOCUMENTS[1], DOCUMENTS[2]]


def test_a_rerank_ends_soon_after_its_deadline(client, monkeypatch):
    plain, seen = SentenceEmbedder._embed_batch, []
    monkeypatch.setattr(SentenceEmbedder, "_embed_batch", lambda *a: (seen.append(1), time.sleep(0.3), plain(*a))[2])
    body = {"model": MINILM, "query": QUERY, "documents": ["word " * 9] * 256}
    late = client.post("/v1/rerank", json=body, headers={"x-fovea-deadline-ms": "500"})
    assert (late.status_code, late.json()["error"]["code"]) == (504, "deadline_exceeded")
    time.sleep(0.8)
    assert len(seen) < 5  # of 9


@pytest.mark.parametrize("names", [("text_1", "text_2"), ("queries", "documents"), ("data_1", "items")])
def test_scores_are_those_of_the_ranking(client, names):
    ranked = client.post("/v1/rerank", json={"model": "bm25", "query": QUERY, "documents": DOCUMENTS}).json()
    by_index = {one["index"]: one["relevance_score"] for one in ranked["results"]}
    for first in (QUERY, [QUERY] * 3):
        scored = client.post("/v1/score", json={"model": "bm25", names[0]: first, names[1]: DOCUMENTS}).json()["data"]
        assert [one["score"] for one in scored] == [by_index[i] for i in range(3)]


@pytest.mark.parametrize(("path", "body", "status"), [
    ("/v1/rerank", {"query": "", "documents": ["a"]}, 400), ("/v1/rerank", {"query": "a", "documents": []}, 400),
    ("/v1/rerank", {"query": "a", "documents": ["a"] * 257}, 400),
    ("/v1/rerank", {"query": "a", "documents": [""]}, 400),
    ("/v1/rerank", {"query": "a", "documents": [{"title": "no text"}]}, 400),
    ("/v1/rerank", {"query": "a", "documents": ["a"], "top_n": 0}, 400),
    ("/v1/rerank", {"query": "a", "documents": ["a"], "model": "rerank-v3.5"}, 404),
    ("/v1/score", {"text_1": ["a", "b"], "text_2": ["a", "b", "c"]}, 400), ("/v1/score", {"text_1": "a"}, 400),
])  # fmt: skip
def test_bad_requests_are_refused_in_openais_form(client, path, body, status):
    answer = client.post(path, json=body)
    assert answer.status_code == status, answer.text
    assert answer.json()["error"]["message"]


@pytest.mark.parametrize(("verdict", "score"), [
    ({"grade": 2, "valid": True, "expected": 1.5}, 0.5), ({"grade": None, "valid": True, "signal": 0.0}, 0.5),
    ({"grade": 3, "valid": True}, 1.0), ({"grade": None, "valid": False}, 0.0),
    ({"grade": None, "valid": True, "signal": -1e9}, 0.0),
])  # fmt: skip
def test_verdicts_become_scores(verdict, score):
    assert score_verdict(Verdict(template="t@1", **verdict)) == pytest.approx(score, abs=1e-9)


@pytest.mark.parametrize(
    ("path", "body"), [("/v1/rerank", {"query": "a", "documents": ["a"]}), ("/score", {"text_1": "a", "text_2": "b"})]
)
def test_other_fields_are_named_or_refused(client, path, body):
    body = {"model": "bm25", "user": "me", **body}
    answer = client.post(path, json=body | {"top_m": 1}).json()
    assert len(answer["warnings"]) == 1
    assert answer["warnings"][0].startswith("There is no field 'top_m'")
    assert "warnings" not in client.post(path, json=body).json()
    error = client.post(path, json=body | {"max_tokens_per_doc": 3}).json()["error"]
    assert (error["param"], "Shorten the documents." in error["message"]) == ("max_tokens_per_doc", True)


def test_every_field_of_vllm_is_known():
    for route, model in (("/v1/rerank", RerankIn), ("/v1/score", ScoreIn)):
        assert [name for name in PEERS[route]["vLLM"].split() if find_fate(name, model)[0] == "unknown"] == []
