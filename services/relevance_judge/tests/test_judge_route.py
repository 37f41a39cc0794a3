"""`POST /v1/judge` through the platform, with a model that answers by rule, and hostile bodies of every route."""

from typing import Any

import pytest

from services.relevance_judge.app import app
from services.relevance_judge.judges.log_odds import LogOdds
from services.relevance_judge.judges.prompted_grade import PromptedGrade
from services.relevance_judge.judges.query_likelihood import QueryLikelihood
from services.relevance_judge.routes import router
from services.relevance_judge.tests.conftest import serve_judges
from services.relevance_judge.tests.fake_endpoint import FakeModel, answered_by
from shared.registry import LoadContext
from shared.serving.build_app import build
from shared.settings import Settings
from tests.harness.openapi_fuzz import fuzz
from tests.harness.serving import is_loaded, serve_in_thread


def answering(kind: type[Any]) -> type[Any]:
    class Answering(kind):
        card = kind.card

        @classmethod
        def load(cls, place: LoadContext) -> Any:
            assert (place.options["judge_base_url"], "judge_api_key" in place.options) == ("http://judge.test", False)
            return cls(FakeModel().client())  # it always says 2, and tells no log-probabilities

    return Answering


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    kinds = {kind.card.name: answering(kind) for kind in (PromptedGrade, LogOdds)}
    with serve_judges(tmp_path_factory.mktemp("fovea"), kinds, judge_base_url="http://judge.test") as made:
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


def test_the_app_of_the_service_has_the_judges_and_what_needs_no_model():
    paths = app.openapi()["paths"]
    assert {"/v1/judge", "/v1/judge/agreement", "/v1/judge/rankings", "/v1/judge/templates/{name}/render"} <= set(paths)
    judges = ["similarity", "ensemble", "log-odds", "prompted-grade", "query-likelihood", "word-overlap"]
    assert app.state.host.tasks() == {"judge": judges}


JUDGE = answered_by(FakeModel(lambda _: "A"), QueryLikelihood)


def build_app(**settings):
    told = Settings(_env_file=None, shutdown_grace_s=1, **settings)
    return build("relevance-judge", routers=[router], servables={"query-likelihood": JUDGE}, settings=told)


def test_no_request_that_the_document_allows_is_a_server_error(tmp_path):
    app = build_app(data_dir=tmp_path)
    with serve_in_thread(app, is_loaded) as url:
        fuzz(app.openapi(), url, 5, "/v1/judge")
