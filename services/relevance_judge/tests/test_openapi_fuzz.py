"""schemathesis over the routes of judges: whatever their document allows is answered, and nothing is a server error.

The language model is a stand-in that answers at once, so that no deadline ends a request.
"""

from services.relevance_judge.judges.query_likelihood import QueryLikelihood
from services.relevance_judge.routes import router
from services.relevance_judge.tests.fake_endpoint import FakeModel, answered_by
from shared.serving.build_app import build
from shared.settings import Settings
from tests.harness.openapi_fuzz import fuzz
from tests.harness.serving import is_loaded, serve_in_thread

JUDGE = answered_by(FakeModel(lambda _: "A"), QueryLikelihood)


def build_app(**settings):
    told = Settings(_env_file=None, shutdown_grace_s=1, **settings)
    return build("relevance-judge", routers=[router], servables={"query-likelihood": JUDGE}, settings=told)


def test_no_request_that_the_document_allows_is_a_server_error(tmp_path):
    app = build_app(data_dir=tmp_path)
    with serve_in_thread(app, is_loaded) as url:
        fuzz(app.openapi(), url, 5, "/v1/judge")
