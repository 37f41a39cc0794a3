"""`POST /v1/judge` through the platform, with a model that answers by rule, and hostile bodies of every route."""

import pytest

from services.relevance_judge.judges.log_odds import LogOdds
from services.relevance_judge.judges.prompted_grade import PromptedGrade
from services.relevance_judge.judges.query_likelihood import QueryLikelihood
from services.relevance_judge.routes import router
from services.relevance_judge.tests.conftest import serve_judges
from services.relevance_judge.tests.fake_endpoint import FakeModel, answered_by
from shared.serving.build_app import build
from shared.settings import Settings
from tests.harness.openapi_fuzz import fuzz
from tests.harness.serving import is_loaded, serve_in_thread


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    kinds = {kind.card.name: answered_by(FakeModel(), kind) for kind in (PromptedGrade, LogOdds)}  # it always says 2
    with serve_judges(tmp_path_factory.mktemp("fovea"), kinds) as made:
        yield made


def test_one_query_with_its_passages_is_judged(client):
    body = {"model": "prompted-grade", "query": "q", "passages": ["a", {"doc": {"segment": "b"}}]}
    answer = client.post("/v1/judge", json=body)
    assert answer.status_code == 200, answer.text
    assert ([row["grade"] for row in answer.json()["results"]], answer.json()["model"]) == ([2, 2], "prompted-grade")


@pytest.mark.parametrize(
    ("body", "status", "field"),
    [
        ({}, 422, None),
        ({"pairs": [{"query": "q"}]}, 422, "pairs"),
        ({"pairs": 3}, 422, "pairs"),
        ({"query": "q", "passages": ["p"], "template": "nope"}, 404, "template"),
        ({"query": "q", "passages": ["p"], "template": "yes-no"}, 422, "template"),
        ({"query": "q", "passages": ["p"], "surprise": 1}, 422, "surprise"),
        ({"query": "q", "passages": ["p"], "model": "log-odds"}, 422, "llm"),
        ({"query": "q", "passages": ["p"], "model": "oracle"}, 404, "model"),
    ],
)
def test_a_bad_request_is_a_problem_that_names_its_field(client, body, status, field):
    answer = client.post("/v1/judge", json={"model": "prompted-grade", **body})
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"].startswith("application/problem+json")
    assert field is None or answer.json()["field"] == field


def test_no_request_that_the_document_allows_is_a_server_error(tmp_path):
    settings = Settings(_env_file=None, shutdown_grace_s=1, data_dir=tmp_path)
    judges = {"query-likelihood": answered_by(FakeModel(lambda _: "A"), QueryLikelihood)}
    app = build("relevance-judge", routers=[router], servables=judges, settings=settings)
    with serve_in_thread(app, is_loaded) as url:
        fuzz(app.openapi(), url, 5, "/v1/judge")
