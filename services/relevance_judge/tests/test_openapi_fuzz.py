"""schemathesis over the routes of judges: whatever their document allows is answered, and nothing is a server error.

The language model is a stand-in that answers at once, so that no deadline ends a request.
"""

import pytest

from services.relevance_judge.judges.query_likelihood import QueryLikelihood
from services.relevance_judge.routes import router
from services.relevance_judge.tests.fake_endpoint import FakeModel, answered_by
from shared.serving.build_app import build
from shared.settings import Settings
from tests.harness.openapi_fuzz import fuzz, list_operations
from tests.harness.serving import is_loaded, serve_in_thread

JUDGE = answered_by(FakeModel(lambda _: "A"), QueryLikelihood)


def build_app(**settings):
    told = Settings(_env_file=None, shutdown_grace_s=1, **settings)
    return build("relevance-judge", routers=[router], servables={"query-likelihood": JUDGE}, settings=told)


OPERATIONS = list_operations(build_app(), "/v1/judge")


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    with serve_in_thread(build_app(data_dir=tmp_path_factory.mktemp("fovea")), is_loaded) as served:
        yield served


@pytest.mark.parametrize("label", OPERATIONS)
def test_no_request_that_the_document_allows_is_a_server_error(label, url):
    fuzz(OPERATIONS[label], url, 5)
